// Access to headers and seals, and the administration lock.
// A header is copied as 24 relaxed words: a torn copy is possible and is caught by its seal and the state word.
#include "core.h"

#include <time.h>
#include <unistd.h>

#include <cstring>

#include "../support/optimistic.h"
#include "room.h"

namespace gft {
namespace {

constexpr uint64_t kHeaderWords = sizeof(SlotHeader) / 8;
constexpr int kAdminSeconds = 2;

}  // namespace

Core::Core(std::unique_ptr<ArenaFile> file) : file_(std::move(file)), room_(std::make_unique<Room>(*this)) {}
Core::~Core() = default;

void Core::check_writable() const {
  if (file_->read_only) fail(GFT_READ_ONLY, "arena %s was opened read only; open it for writing to change it", path());
  check_alive();
}

SlotHeader Core::read_header(uint64_t slot) const {
  uint64_t words[kHeaderWords];
  for (uint64_t i = 0; i < kHeaderWords; ++i)
    words[i] = word(geometry().headers + slot * sizeof(SlotHeader) + i * 8).load(std::memory_order_relaxed);
  SlotHeader header;
  std::memcpy(&header, words, sizeof header);
  return header;
}

void Core::write_header(uint64_t slot, const SlotHeader &header) const {
  uint64_t words[kHeaderWords];
  std::memcpy(words, &header, sizeof header);
  for (uint64_t i = 0; i < kHeaderWords; ++i)
    word(geometry().headers + slot * sizeof(SlotHeader) + i * 8).store(words[i], std::memory_order_relaxed);
}

Digest Core::payload_digest(uint64_t slot) const {
  OptimisticRead slot_may_be_given_away;
  return digest().of(payload(slot), geometry().slot_bytes);
}

Digest Core::seal_of(uint64_t slot, const SlotHeader &header) const {
  struct {
    uint8_t header[offsetof(SlotHeader, seal)];
    uint64_t slot;
    uint8_t arena_id[16];
  } covered;
  static_assert(sizeof covered == offsetof(SlotHeader, seal) + 24);
  std::memcpy(covered.header, &header, sizeof covered.header);
  covered.slot = slot;
  std::memcpy(covered.arena_id, file_->id, 16);
  return digest().of(&covered, sizeof covered);
}

Digest Core::link_of(const DigestAlgorithm &digest, const SlotHeader &header) {
  struct {
    uint8_t parent_link[16], payload_digest[16], name_space_id[16];
    uint64_t epoch, shard, position, hash_bytes;
    uint8_t hash[kHashBytes];
  } covered;
  static_assert(sizeof covered == 48 + 32 + kHashBytes);
  std::memcpy(covered.parent_link, header.parent_link, 16);
  std::memcpy(covered.payload_digest, header.digest, 16);
  std::memcpy(covered.name_space_id, header.name_space_id, 16);
  covered.epoch = header.epoch;
  covered.shard = header.shard;
  covered.position = header.position;
  covered.hash_bytes = header.hash_bytes;
  std::memcpy(covered.hash, header.hash, kHashBytes);
  return digest.of(&covered, sizeof covered);
}

uint8_t Core::owner_of(uint64_t slot, uint64_t generation) const {
  MarkWord mark = MarkWord::of(this->mark(slot).load(std::memory_order_relaxed));
  return mark.belongs_to(generation) ? mark.owner : 0;
}

void Core::account(uint8_t owner, int64_t slots) const {
  if (owner > 0 && owner <= kNamespaces)
    Word(namespace_record(owner - 1u)->used).fetch_add(static_cast<uint64_t>(slots), std::memory_order_relaxed);
}

bool Core::lane_alive(uint32_t lane) const { return is_locked(file_->descriptor, kLaneLocks + lane); }

AdminLock::AdminLock(Core &core) : mutex_(core.admin_mutex()), lock_(core.file().descriptor, core.path()) {
  struct timespec start, now, nap = {0, 500'000};
  clock_gettime(CLOCK_MONOTONIC, &start);
  Word pid(core.control()->admin_pid);
  while (!lock_.try_lock(kAdminLock)) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec - start.tv_sec + (now.tv_nsec - start.tv_nsec) * 1e-9 > kAdminSeconds)
      fail(GFT_TIMED_OUT,
           "process %llu has held the administration lock of arena %s for more than %d s; it is stopped or "
           "stuck: end it",
           (unsigned long long)pid.load(std::memory_order_relaxed), core.path(), kAdminSeconds);
    nanosleep(&nap, nullptr);
  }
  pid.store(static_cast<uint64_t>(getpid()), std::memory_order_relaxed);
}

AdminLock::~AdminLock() { lock_.unlock(kAdminLock); }

}  // namespace gft
