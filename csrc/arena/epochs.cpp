// Opening epochs and taking lanes. The token of epoch e lies in a ring at e mod kTokens and counts once the epoch word
// has reached e, so one release-store opens an epoch and a kill before it leaves the old one untouched.
#include "epochs.h"

#include <sys/random.h>
#include <unistd.h>

#include <cstring>

#include "../digest/crc32c.h"
#include "room.h"

namespace gft {
namespace {

constexpr uint64_t kMaxEpoch = 0xfffffff0;  // hold words keep 32 bits of it

TokenRecord token_record(const Core &core, uint64_t epoch) {
  TokenRecord copy;
  std::memcpy(&copy, &core.control()->tokens[epoch % kTokens], sizeof copy);
  return copy;
}

bool names(const TokenRecord &record, uint64_t epoch) {
  return record.epoch == epoch && record.crc == crc32c(&record, offsetof(TokenRecord, crc));
}

bool same(const TokenRecord &record, const uint8_t token[16]) { return std::memcmp(record.token, token, 16) == 0; }

uint64_t checked_epoch(const Core &core) {
  uint64_t epoch = core.epoch();
  if (epoch > kMaxEpoch)
    fail(GFT_DAMAGED, "arena %s is damaged: its epoch is %llu; remove it", core.path(), (unsigned long long)epoch);
  if (epoch > 0 && !names(token_record(core, epoch), epoch))
    fail(GFT_DAMAGED, "arena %s is damaged: the token of its epoch %llu does not hold; remove it", core.path(),
         (unsigned long long)epoch);
  return epoch;
}

// Above `now` and above `floor`, which is what blocks that lie elsewhere were sealed in. A jump goes by whole turns of the
// ring, so that it overwrites the oldest token and not the one that is superseded now.
uint64_t next_epoch(const Core &core, uint64_t now, uint64_t floor) {
  if (floor > kMaxEpoch - 2 * kTokens)
    fail(GFT_INVALID, "arena %s: an epoch above %llu is wanted, the last possible one is %llu; the store that names it is damaged",
         core.path(), (unsigned long long)floor, (unsigned long long)kMaxEpoch);
  if (now == 0) return floor + 1;
  uint64_t next = now + 1;
  return next > floor ? next : next + (floor - next) / kTokens * kTokens + kTokens;
}

void refuse_superseded(const Core &core, uint64_t epoch, const uint8_t token[16]) {
  for (uint64_t place = 0; place < kTokens; ++place) {
    TokenRecord record = token_record(core, place);
    uint64_t old = record.epoch;
    if (old > 0 && old < epoch && old % kTokens == place && names(record, old) && same(record, token))
      fail(GFT_FENCED,
           "this engine start opened epoch %llu of arena %s, which is now in epoch %llu: it was replaced; stop "
           "this process",
           (unsigned long long)old, core.path(), (unsigned long long)epoch);
  }
}

LaneRecord lane_record(const Core &core, uint32_t lane) {
  LaneRecord copy;
  std::memcpy(&copy, core.lane(lane), sizeof copy);
  return copy;
}

}  // namespace

uint64_t begin_epoch(Core &core, const uint8_t token[16], bool takeover, uint64_t floor) {
  core.check_writable();
  AdminLock lock(core);
  uint64_t epoch = checked_epoch(core);
  if (epoch > 0 && same(token_record(core, epoch), token)) return epoch;
  refuse_superseded(core, epoch, token);
  for (uint32_t lane = 0; lane < kLanes && !takeover; ++lane)
    if (LaneRecord record = lane_record(core, lane); record.epoch == epoch && epoch > 0 && core.lane_alive(lane))
      fail(GFT_BUSY,
           "process %u writes shard %u of arena %s in epoch %llu; end it, give this engine another arena, or take "
           "over",
           record.pid, record.shard, core.path(), (unsigned long long)epoch);
  TokenRecord record{next_epoch(core, epoch, floor), {}, static_cast<uint32_t>(getpid()), 0};
  std::memcpy(record.token, token, 16);
  record.crc = crc32c(&record, offsetof(TokenRecord, crc));
  std::memcpy(&core.control()->tokens[record.epoch % kTokens], &record, sizeof record);
  Word(core.control()->epoch).store(record.epoch, std::memory_order_release);
  return record.epoch;
}

Lane take_lane(Core &core, uint32_t shard, const uint8_t token[16], bool takeover) {
  Lane lane{0, 0, 0, std::make_unique<LockFile>(core.file().descriptor, core.path())};
  {
    AdminLock lock(core);
    lane.epoch = checked_epoch(core);
    if (lane.epoch == 0) fail(GFT_INVALID, "arena %s has no epoch yet; begin one before attaching a writer", core.path());
    if (!same(token_record(core, lane.epoch), token)) {
      refuse_superseded(core, lane.epoch, token);
      fail(GFT_FENCED, "the token does not name epoch %llu of arena %s; begin an epoch with it first",
           (unsigned long long)lane.epoch, core.path());
    }
    for (uint32_t other = 0; other < kLanes; ++other) {
      LaneRecord record = lane_record(core, other);
      if (record.epoch != lane.epoch || record.shard != shard || record.ticket == 0 || !core.lane_alive(other)) continue;
      if (!takeover)
        fail(GFT_BUSY, "process %u writes shard %u of arena %s in this epoch already; end it, or take over", record.pid,
             shard, core.path());
      Word(core.lane(other)->ticket).store(0, std::memory_order_release);
    }
    uint32_t free = 0;
    while (free < kLanes && !lane.lock->try_lock(kLaneLocks + free)) ++free;
    if (free == kLanes)
      fail(GFT_FULL, "arena %s has %u live writers, all it has lanes for; end stopped ones", core.path(), kLanes);
    lane.number = static_cast<uint8_t>(free);
    if (getrandom(&lane.ticket, sizeof lane.ticket, 0) != sizeof lane.ticket) lane.ticket = core.tick() << 22 ^ getpid();
    lane.ticket |= 1;
    LaneRecord record{lane.ticket, lane.epoch, shard, static_cast<uint32_t>(getpid()), {}, {}};
    std::memcpy(record.token, token, 16);
    std::memcpy(core.lane(free), &record, sizeof record);
  }
  clear_lane(core, lane.number);
  return lane;
}

}  // namespace gft
