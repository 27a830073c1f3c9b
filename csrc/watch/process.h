// What /proc says of another process: is it still the same one, is it stopped, and has it been waiting for a processor.
// Reads small files; never blocks on the process itself.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace gft::watch {

struct ProcessState {
  bool there = false;    // the process with this pid and start time exists and is no zombie
  char state = '?';      // R S D T t Z ..., '?' unknown
  uint64_t started = 0;  // clock ticks since boot
};

// `started` 0: whoever has the pid now.
ProcessState process_state(uint32_t pid, uint64_t started) noexcept;
// How long threads of some processes were kept from a processor, counted up from look to look: of each look the thread that waited
// longest. What happened before the first look, or in threads that are new, does not count.
class ProcessorWaits {
 public:
  // Reads every thread's schedstat; nanoseconds counted so far. Unreadable processes count nothing.
  int64_t look(const std::vector<uint32_t> &pids);

 private:
  std::unordered_map<uint64_t, int64_t> last_;  // by pid and thread
  int64_t counted_ = 0;
};

}  // namespace gft::watch
