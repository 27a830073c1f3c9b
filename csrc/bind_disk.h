// Python's DiskLog as the binding's files share it: a converter reads from logs too.
// Included by bind_disk.cpp and bind_relayout.cpp only.
#pragma once

#include "bind.h"
#include "gft_disk.h"

namespace bind {

struct PyLog {
  std::shared_ptr<gft_disk> handle;
  gft_disk *get() const { return handle.get(); }
};

}  // namespace bind
