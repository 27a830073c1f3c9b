// Two hash tables, by link and by name, over items that lie grouped by segment, so that a segment goes in one piece.
// A dead item stays in its segment's list (its room is only won back with the segment) but in no table.
#include "index.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "format.h"

namespace gft::disk {

uint64_t Item::bytes() const { return record_bytes(stored_bytes); }

void RefTable::grow() {
  std::vector<Place> before = std::move(places_);
  places_.assign(std::max<size_t>(1024, std::bit_ceil(full_ * 3)), Place{});
  used_ = full_ = 0;
  for (const Place &place : before)
    if (place.state == State::full) add(uint64_t{place.tag} << 32 | place.low, place.ref);
}

void RefTable::add(uint64_t hash, Ref ref) {
  if ((used_ + 1) * 3 > places_.size() * 2) grow();
  size_t at = hash & mask();
  while (places_[at].state == State::full) at = (at + 1) & mask();
  used_ += places_[at].state == State::empty;
  ++full_;
  places_[at] = {ref, static_cast<uint32_t>(hash >> 32), State::full, static_cast<uint32_t>(hash)};
}

void RefTable::remove(uint64_t hash, Ref ref) {
  if (places_.empty()) return;
  for (size_t at = hash & mask(); places_[at].state != State::empty; at = (at + 1) & mask())
    if (places_[at].state == State::full && places_[at].ref == ref) {
      places_[at].state = State::removed;
      --full_;
      return;
    }
}

namespace {

uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

uint64_t fold(const void *data, size_t bytes, uint64_t state) {
  auto *from = static_cast<const uint8_t *>(data);
  for (size_t at = 0; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + at, std::min<size_t>(8, bytes - at));
    state = mix(state + word + 0x9e3779b97f4a7c15);
  }
  return state;
}

uint64_t link_hash(const Id &link) { return fold(link.data(), link.size(), 0); }

}  // namespace

size_t Index::IdHash::operator()(const Id &id) const { return link_hash(id); }

uint64_t Index::name_hash(const Id &name_space, uint32_t shard, std::string_view hash) const {
  return fold(hash.data(), hash.size(), fold(name_space.data(), name_space.size(), shard));
}

std::string_view Index::hash_of(const Segment &segment, const Item &item) const {
  return std::string_view(segment.hashes).substr(item.hash_at, item.hash_bytes);
}

Entry Index::entry(const Segment &segment, const Item &item) const {
  Entry out;
  out.key = {item.name_space,   item.shard, item.position, item.epoch, item.payload_bytes, std::string(hash_of(segment, item)),
             item.parent_link, item.link,  item.digest};
  out.segment = segment.number;
  out.offset = item.page * kPage;
  out.stored_bytes = item.stored_bytes;
  out.codec = item.codec;
  return out;
}

uint32_t Index::slot_of(uint64_t number) {
  auto [at, fresh] = slots_.try_emplace(number, 0);
  if (!fresh) return at->second;
  if (free_.empty()) {
    free_.push_back(static_cast<uint32_t>(segments_.size()));
    segments_.emplace_back();
  }
  at->second = free_.back();
  free_.pop_back();
  segments_[at->second] = {};
  segments_[at->second].number = number;
  return at->second;
}

const Item *Index::by_link_slot(const Id &link, Ref *ref) const {
  const Item *found = nullptr;
  links_.each(link_hash(link), [&](Ref each) {
    if (found || at(each).link != link) return;
    found = &at(each);
    if (ref) *ref = each;
  });
  return found;
}

void Index::add(const Entry &entry, bool tried, uint64_t stamp) {
  Ref before;
  if (by_link_slot(entry.key.link, &before)) kill(before);
  uint32_t slot = slot_of(entry.segment);
  Segment &segment = segments_[slot];
  const Key &key = entry.key;
  Ref ref{slot, static_cast<uint32_t>(segment.items.size())};
  segment.items.push_back({key.name_space, key.parent_link, key.link, key.digest, key.position, key.epoch, key.payload_bytes,
                           entry.stored_bytes, stamp ? stamp : ++tick_, key.shard, static_cast<uint32_t>(entry.offset / kPage),
                           static_cast<uint32_t>(segment.hashes.size()), static_cast<uint8_t>(key.hash.size()), entry.codec,
                           false, tried});
  segment.hashes += key.hash;
  links_.add(link_hash(key.link), ref);
  names_.add(name_hash(key.name_space, key.shard, key.hash), ref);
  uint64_t bytes = record_bytes(entry.stored_bytes);
  segment.live_bytes += bytes;
  ++segment.live;
  ++live_;
  live_bytes_ += bytes;
  payload_bytes_ += key.payload_bytes;
  compressed_ += entry.codec != Codec::none;
  max_epoch_ = std::max(max_epoch_, key.epoch);
}

void Index::kill(Ref ref) {
  Segment &segment = segments_[ref.segment];
  Item &item = at(ref);
  if (item.dead) return;
  item.dead = true;
  links_.remove(link_hash(item.link), ref);
  names_.remove(name_hash(item.name_space, item.shard, hash_of(segment, item)), ref);
  segment.live_bytes -= item.bytes();
  --segment.live;
  --live_;
  live_bytes_ -= item.bytes();
  payload_bytes_ -= item.payload_bytes;
  compressed_ -= item.codec != Codec::none;
}

void Index::remove_segment(uint64_t number) {
  auto found = slots_.find(number);
  if (found == slots_.end()) return;
  Segment &segment = segments_[found->second];
  for (uint32_t i = 0; i < segment.items.size(); ++i) kill(Ref{found->second, i});
  segment = {};
  free_.push_back(found->second);
  slots_.erase(found);
}

bool Index::points_to(const Entry &entry) const {
  Ref ref;
  const Item *item = by_link_slot(entry.key.link, &ref);
  return item && segments_[ref.segment].number == entry.segment && item->page * kPage == entry.offset;
}

bool Index::kill(const Entry &entry) {
  if (!points_to(entry)) return false;
  Ref ref;
  (void)by_link_slot(entry.key.link, &ref);
  kill(ref);
  return true;
}

std::vector<Entry> Index::find(const Id &name_space, uint32_t shard, std::string_view hash, int64_t position) const {
  std::vector<Entry> out;
  names_.each(name_hash(name_space, shard, hash), [&](Ref ref) {
    const Item &item = at(ref);
    const Segment &segment = segments_[ref.segment];
    if (item.shard == shard && item.name_space == name_space && hash_of(segment, item) == hash &&
        (position < 0 || item.position == static_cast<uint64_t>(position)))
      out.push_back(entry(segment, item));
  });
  std::stable_sort(out.begin(), out.end(), [](const Entry &a, const Entry &b) { return a.key.epoch > b.key.epoch; });
  return out;
}

std::optional<Entry> Index::entry_of(const Id &link) const {
  Ref ref;
  const Item *item = by_link_slot(link, &ref);
  return item ? std::optional(entry(segments_[ref.segment], *item)) : std::nullopt;
}

void Index::touch(const Id &link) {
  Ref ref;
  if (by_link_slot(link, &ref)) at(ref).stamp = ++tick_;
}

void Index::release(const Id &link) {
  auto found = holds_.find(link);
  if (found != holds_.end() && --found->second == 0) holds_.erase(found);
}

std::vector<Entry> Index::entries(uint64_t number) const {
  std::vector<Entry> out;
  auto found = slots_.find(number);
  if (found == slots_.end()) return out;
  const Segment &segment = segments_[found->second];
  for (const Item &item : segment.items)
    if (!item.dead) out.push_back(entry(segment, item));
  return out;
}

std::vector<Entry> Index::entries() const {
  std::vector<Entry> out;
  for (const auto &[number, slot] : slots_) {
    auto part = entries(number);
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

const std::vector<Item> *Index::items(uint64_t number) const {
  auto found = slots_.find(number);
  return found == slots_.end() ? nullptr : &segments_[found->second].items;
}

SegmentUse Index::use(uint64_t number) const {
  auto found = slots_.find(number);
  if (found == slots_.end()) return {number, 0, 0, 0};
  const Segment &segment = segments_[found->second];
  SegmentUse out{number, segment.live_bytes, segment.live, 0};
  if (!holds_.empty())
    for (const Item &item : segment.items)
      if (!item.dead && held(item.link)) out.held_bytes += item.bytes();
  return out;
}

uint64_t Index::uncompressed_bytes(uint64_t number) const {
  uint64_t bytes = 0;
  if (auto *all = items(number))
    for (const Item &item : *all)
      if (!item.dead && !item.tried && item.codec == Codec::none) bytes += item.bytes();
  return bytes;
}

uint64_t Index::stamp_of_oldest(double part) const {
  std::vector<std::pair<uint64_t, uint64_t>> ages;
  ages.reserve(live_);
  for (const auto &[number, slot] : slots_)
    for (const Item &item : segments_[slot].items)
      if (!item.dead) ages.emplace_back(item.stamp, item.bytes());
  std::sort(ages.begin(), ages.end());
  auto wanted = static_cast<uint64_t>(part * static_cast<double>(live_bytes_));
  uint64_t sum = 0;
  for (const auto &[stamp, bytes] : ages) {
    sum += bytes;
    if (sum >= wanted) return stamp + 1;
  }
  return UINT64_MAX;
}

}  // namespace gft::disk
