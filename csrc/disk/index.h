// Which blocks the log holds and where: compact, in memory, rebuilt from summaries at each opening.
// Not thread-safe; the log's mutex guards it. Nothing here touches the disk.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <unordered_map>

#include "log.h"

namespace gft::disk {

// Positions of items by a 64-bit hash, open addressing; several items may share one.
class RefTable {
 public:
  struct Ref {
    uint32_t segment, item;  // segment: a slot of the index, not a number
    bool operator==(const Ref &) const = default;
  };
  void add(uint64_t hash, Ref ref);
  void remove(uint64_t hash, Ref ref);
  template <typename Each>
  void each(uint64_t hash, Each visit) const {
    if (places_.empty()) return;
    for (size_t at = hash & mask();; at = (at + 1) & mask()) {
      const Place &place = places_[at];
      if (place.state == State::empty) return;
      if (place.state == State::full && place.tag == static_cast<uint32_t>(hash >> 32)) visit(place.ref);
    }
  }

 private:
  enum class State : uint32_t { empty, full, removed };
  struct Place {
    Ref ref{};
    uint32_t tag = 0;
    State state = State::empty;
    uint32_t low = 0;  // low half of the hash, for growing
  };
  size_t mask() const { return places_.size() - 1; }
  void grow();
  std::vector<Place> places_;
  size_t used_ = 0, full_ = 0;
};

struct Item {
  Id name_space, parent_link, link, digest;
  uint64_t position, epoch, payload_bytes, stored_bytes, stamp;
  uint32_t shard, page, hash_at;
  uint8_t hash_bytes;
  Codec codec;
  bool dead;
  bool tried;  // compressing it did not pay
  uint64_t bytes() const;
};

struct SegmentUse {
  uint64_t number, live_bytes, live, held_bytes;
};

class Index {
 public:
  using Ref = RefTable::Ref;
  // The newest place of a link counts; the one before becomes dead. `stamp` 0: now.
  void add(const Entry &entry, bool tried, uint64_t stamp = 0);
  void remove_segment(uint64_t number);
  bool kill(const Entry &entry);  // false when the index does not point there
  std::vector<Entry> find(const Id &name_space, uint32_t shard, std::string_view hash, int64_t position) const;
  const Item *by_link(const Id &link) const { return by_link_slot(link, nullptr); }
  std::optional<Entry> entry_of(const Id &link) const;
  bool points_to(const Entry &entry) const;
  void touch(const Id &link);
  void hold(const Id &link) { ++holds_[link]; }
  void release(const Id &link);
  bool held(const Id &link) const { return holds_.contains(link); }

  // Of one segment, in order of place; live ones only.
  std::vector<Entry> entries(uint64_t number) const;
  std::vector<Entry> entries() const;
  const std::vector<Item> *items(uint64_t number) const;
  SegmentUse use(uint64_t number) const;
  uint64_t uncompressed_bytes(uint64_t number) const;  // that nobody has tried to compress
  // The stamp below which the oldest `part` of all live bytes lies.
  uint64_t stamp_of_oldest(double part) const;

  uint64_t live() const { return live_; }
  uint64_t live_bytes() const { return live_bytes_; }
  uint64_t payload_bytes() const { return payload_bytes_; }
  uint64_t compressed() const { return compressed_; }
  uint64_t held_count() const { return holds_.size(); }
  uint64_t max_epoch() const { return max_epoch_; }

 private:
  struct Segment {
    uint64_t number = 0, live_bytes = 0, live = 0;
    std::vector<Item> items;
    std::string hashes;
  };
  struct IdHash {
    size_t operator()(const Id &id) const;
  };
  const Item *by_link_slot(const Id &link, Ref *ref) const;
  Item &at(Ref ref) { return segments_[ref.segment].items[ref.item]; }
  const Item &at(Ref ref) const { return segments_[ref.segment].items[ref.item]; }
  std::string_view hash_of(const Segment &segment, const Item &item) const;
  uint64_t name_hash(const Id &name_space, uint32_t shard, std::string_view hash) const;
  Entry entry(const Segment &segment, const Item &item) const;
  void kill(Ref ref);
  uint32_t slot_of(uint64_t number);

  std::vector<Segment> segments_;  // by slot; number 0: free
  std::map<uint64_t, uint32_t> slots_;
  std::vector<uint32_t> free_;
  RefTable links_, names_;
  std::unordered_map<Id, uint32_t, IdHash> holds_;
  uint64_t tick_ = 0, live_ = 0, live_bytes_ = 0, payload_bytes_ = 0, compressed_ = 0, max_epoch_ = 0;
};

}  // namespace gft::disk
