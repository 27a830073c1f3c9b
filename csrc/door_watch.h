// The handle that every source of the watchers' door needs: the queue it pushes into.
// Included by the door_watch*.cpp files.
#pragma once

#include <memory>

#include "gft_watch.h"
#include "watch/queue.h"

struct gft_watch_queue {
  std::shared_ptr<gft::watch::Queue> queue;
};
