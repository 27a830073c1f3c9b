// One mapped arena with typed, bounds-safe access to its words: what every other file of this folder works on.
// Words shared with other processes are only touched through atomic references; plain fields only after being copied out.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../support/fail.h"
#include "file.h"
#include "locks.h"

namespace gft {

using Word = std::atomic_ref<uint64_t>;
using Id = std::array<uint8_t, 16>;

class Room;

// A namespace that this process has read and checked.
struct Namespace {
  uint32_t index;
  Id id;  // digest of its record
};

class Core {
 public:
  explicit Core(std::unique_ptr<ArenaFile> file);
  ~Core();

  const ArenaFile &file() const { return *file_; }
  const Geometry &geometry() const { return file_->geometry; }
  const DigestAlgorithm &digest() const { return *file_->digest; }
  const char *path() const { return file_->path.c_str(); }

  void check_alive() const { file_->check_alive(); }
  void check_writable() const;  // also alive

  // Callers pass slot < slots, entry < index_entries, lane < kLanes, half < 2.
  Word state(uint64_t slot) const { return word(geometry().states + slot * 8); }
  Word stamp(uint64_t slot) const { return word(geometry().stamps + slot * 8); }
  Word hold(uint64_t slot) const { return word(geometry().holds + slot * 8); }
  Word mark(uint64_t slot) const { return word(geometry().marks + slot * 8); }
  Word index_entry(uint64_t entry) const { return word(geometry().index + entry * 8); }
  uint8_t *payload(uint64_t slot) const { return file_->base + geometry().payload + slot * geometry().stride; }
  void prefault_payload(uint64_t slot) const noexcept {
    file_->prefault(geometry().payload + slot * geometry().stride, geometry().slot_bytes);
  }
  uint8_t *ledger_half(unsigned half) const { return file_->base + geometry().ledger + half * geometry().half_bytes; }
  NamespaceRecord *namespace_record(uint32_t index) const {
    return reinterpret_cast<NamespaceRecord *>(file_->base + geometry().namespaces) + index;
  }
  Control *control() const { return reinterpret_cast<Control *>(file_->base + geometry().control); }
  LaneRecord *lane(uint32_t lane) const { return reinterpret_cast<LaneRecord *>(file_->base + geometry().lanes) + lane; }

  uint64_t epoch() const { return Word(control()->epoch).load(std::memory_order_acquire); }
  uint64_t tick() const { return Word(control()->clock).fetch_add(1, std::memory_order_relaxed); }

  // Word by word, because a reader may look while a writer writes; the caller makes sure afterwards that it did not.
  SlotHeader read_header(uint64_t slot) const;
  void write_header(uint64_t slot, const SlotHeader &header) const;
  // Of the payload as it lies there; whoever asks checks the state word afterwards.
  Digest payload_digest(uint64_t slot) const;
  Digest seal_of(uint64_t slot, const SlotHeader &header) const;
  static Digest link_of(const DigestAlgorithm &digest, const SlotHeader &header);

  // The namespace that `slot` counts for in this generation, as its number + 1; 0 when its mark word does not say.
  uint8_t owner_of(uint64_t slot, uint64_t generation) const;
  // Keeps a namespace's count of slots; nothing for owner 0.
  void account(uint8_t owner, int64_t slots) const;

  bool lane_alive(uint32_t lane) const;

  // Namespaces (namespaces.cpp).
  uint32_t add_namespace(const void *record, size_t bytes);
  uint32_t namespace_count() const;
  std::vector<uint8_t> namespace_bytes(uint32_t index) const;
  Namespace name_space(uint32_t index);                // GFT_INVALID when there is no such record
  bool names_its_namespace(const SlotHeader &header);  // number and identity belong together

  Room &room() { return *room_; }
  std::mutex &admin_mutex() { return admin_mutex_; }

 private:
  Word word(uint64_t offset) const { return Word(*reinterpret_cast<uint64_t *>(file_->base + offset)); }

  std::unique_ptr<ArenaFile> file_;
  std::unique_ptr<Room> room_;
  std::mutex admin_mutex_, namespace_mutex_;
  std::vector<Namespace> known_namespaces_;
};

// The administration lock: namespaces, epochs and lanes are changed under it, for microseconds at a time.
// The constructor waits at most two seconds, then throws GFT_TIMED_OUT with the pid recorded by the holder.
class AdminLock {
 public:
  explicit AdminLock(Core &core);
  ~AdminLock();

 private:
  std::unique_lock<std::mutex> mutex_;
  LockFile lock_;
};

}  // namespace gft
