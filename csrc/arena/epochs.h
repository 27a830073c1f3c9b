// Who may write: epochs named by the token of an engine start, and lanes whose locks die with their holders.
// Both are changed under the administration lock only; everybody reads them without.
#pragma once

#include "core.h"

namespace gft {

// The first caller with a token opens a new epoch, later ones join it whatever their floor. GFT_BUSY, GFT_FENCED as the
// door says; GFT_INVALID for a floor that leaves no room for epochs above it.
uint64_t begin_epoch(Core &core, const uint8_t token[16], bool takeover, uint64_t floor);

// A lane taken by this process. While `lock` lives, nobody reuses the slots that this lane is writing.
struct Lane {
  uint8_t number;
  uint64_t ticket, epoch;
  std::unique_ptr<LockFile> lock;
};
Lane take_lane(Core &core, uint32_t shard, const uint8_t token[16], bool takeover);

}  // namespace gft
