// Python's DiskLog as the binding's files share it: a converter reads from logs too.
// Included by the files that take a log: bind_disk.cpp, bind_relayout.cpp, bind_backing.cpp.
#pragma once

#include "bind.h"
#include "gft_disk.h"

namespace bind {

struct PyLog {
  std::shared_ptr<gft_disk> handle;
  gft_disk *get() const { return handle.get(); }
};

}  // namespace bind
