// The handle that every source of the watchers' door needs: the queue it pushes into.
// Included by the door_watch*.cpp files.
#pragma once

#include <memory>

#include "gft_watch.h"
#include "watch/queue.h"

namespace gft::watch {
// Calls `each` with a view of `record`.
void tell(gft_watch_callback each, void *context, const Record &record);
}  // namespace gft::watch

struct gft_watch_queue {
  std::shared_ptr<gft::watch::Queue> queue;
};
