// The disk log's handle as the door's files share it: conversions read from logs too.
// Included by the files that take a log: door_disk.cpp, door_relayout.cpp, door_backing.cpp.
#pragma once

#include <memory>

#include "disk/log.h"
#include "gft_disk.h"

struct gft_disk {
  std::shared_ptr<gft::disk::Log> log;
};
