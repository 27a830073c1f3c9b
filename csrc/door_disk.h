// The disk log's handle as the door's files share it: conversions read from logs too.
// Included by door_disk.cpp and door_relayout.cpp only.
#pragma once

#include <memory>

#include "disk/log.h"
#include "gft_disk.h"

struct gft_disk {
  std::shared_ptr<gft::disk::Log> log;
};
