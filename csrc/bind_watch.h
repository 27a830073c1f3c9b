// Python's queue of records as the binding's files share it: every source is made with one.
// Included by the files that bind a source: bind_watch*.cpp.
#pragma once

#include "bind.h"
#include "gft_watch.h"

namespace bind {

struct PyWatchRecord {
  std::string source, what;
  int64_t at_ns, last_ns;
  uint64_t count, serial;
  int index;
  int64_t code;
  int gi, ci;
  int64_t pid;
  std::string bdf, uuid, text;
  std::vector<std::pair<std::string, std::string>> facts;
};

// A callback of the door: appends to the std::vector<PyWatchRecord> that `context` points to.
void collect(void *context, const gft_watch_record *record);

struct PyWatchQueue {
  std::shared_ptr<gft_watch_queue> handle;
  gft_watch_queue *get() const { return handle.get(); }
};

}  // namespace bind
