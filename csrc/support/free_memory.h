// How much memory a memory file system may still take here: the smallest of what the machine and its control groups leave.
// Asked before an arena is allocated, because the kernel's answer to asking for too much is to end a process.
#pragma once

#include <cstdint>

namespace gft {

struct FreeMemory {
  uint64_t bytes;
  const char *limit;  // what sets it, for the error text
};

// Unknown limits count as none. Reads a few files of /proc and /sys.
FreeMemory free_memory();

}  // namespace gft
