// Python's queue of records as the binding's files share it: every source is made with one.
// Included by the files that bind a source: bind_watch*.cpp.
#pragma once

#include "bind.h"
#include "gft_watch.h"

namespace bind {

struct PyWatchQueue {
  std::shared_ptr<gft_watch_queue> handle;
  gft_watch_queue *get() const { return handle.get(); }
};

}  // namespace bind
