// Garbage collection and idle compression: choose a segment, give what is kept a new place, remove the segment.
// The new places are committed before the old segment leaves the superblock, so a kill in between leaves both.
#include <algorithm>
#include <cstring>

#include "codec.h"
#include "keeper.h"

namespace gft::disk {
namespace {
constexpr auto kPause = std::chrono::milliseconds(200), kLook = std::chrono::milliseconds(5);
constexpr double kCold = 0.25;  // of all live bytes
constexpr size_t kSamples = 8;
// Packed records must save a tenth: the rest is not worth unpacking.
bool worth_it(uint64_t packed, uint64_t bytes) { return packed && packed <= bytes - bytes / 10 && record_bytes(packed) < record_bytes(bytes); }
}  // namespace

std::vector<Candidate> Keeper::candidates(bool with_warmth) const {
  Log::Inside::Lock lock(in_.mutex);
  std::vector<Candidate> out;
  uint64_t cold = with_warmth ? in_.index.stamp_of_oldest(kCold) : 0;
  for (const auto &[number, state] : in_.segments) {
    if (!state.limit) continue;
    Candidate each;
    each.number = number;
    // Small ones, left by short lives, count as poor, so that they are put together.
    each.file_bytes = std::max(state.file_bytes, in_.options.segment_bytes / 8);
    each.live_bytes = in_.index.use(number).live_bytes;
    auto *items = with_warmth ? in_.index.items(number) : nullptr;
    for (size_t i = 0; items && i < items->size(); ++i) {
      const Item &item = (*items)[i];
      if (item.dead) continue;
      bool held = in_.index.held(item.link);
      if (held) each.held_bytes += item.bytes();
      if (held || item.stamp >= cold) each.warm_bytes += item.bytes();
    }
    out.push_back(each);
  }
  return out;
}

bool Keeper::collect(bool short_of_room) {
  if (!short_of_room && Clock::now() < next_collection_) return false;
  auto all = candidates(short_of_room);
  auto victim = poorest(all, short_of_room ? 1e-9 : in_.options.live_ratio);
  if (!victim && short_of_room) victim = coldest(all, in_.options.segment_bytes);
  if (!victim) {
    next_collection_ = Clock::now() + kPause;
    return false;
  }
  std::vector<Entry> kept;
  uint64_t forgotten;
  {
    Log::Inside::Lock lock(in_.mutex);
    uint64_t cold = victim->keep == Keep::warm ? in_.index.stamp_of_oldest(kCold) : 0;
    kept = in_.index.entries(victim->number);
    size_t before = kept.size();
    std::erase_if(kept, [&](const Entry &entry) {
      bool held = in_.index.held(entry.key.link);
      switch (victim->keep) {
        case Keep::live:
          return false;
        case Keep::warm:
          return !held && in_.index.by_link(entry.key.link)->stamp < cold;
        case Keep::held:
          return !held;
        case Keep::nothing:
          break;
      }
      return true;
    });
    forgotten = before - kept.size();
  }
  if (!kept.empty() && !move(kept, Codec::none)) {
    Log::Inside::Lock lock(in_.mutex);
    // With no room for what should be kept, keeping it is not possible: some of the log is better than none.
    if (!short_of_room || in_.stop || in_.fenced || in_.refusal.for_good) return false;
    forgotten += kept.size();
  }
  remove(victim->number);
  Log::Inside::Lock lock(in_.mutex);
  in_.counts.evicted += forgotten;
  return true;
}

bool Keeper::move(const std::vector<Entry> &entries, Codec codec) {
  auto batch = std::make_shared<Move>();
  for (const Entry &entry : entries) {
    if (codec != Codec::none && !idle()) batch->failed = true;
    if (batch->failed) break;
    PendingRef record = prepared(entry, codec);
    Log::Inside::Lock lock(in_.mutex);
    if (in_.stop || in_.appender_done || in_.refusal.status) batch->failed = true;
    if (!record) continue;
    const Item *item = in_.index.by_link(entry.key.link);
    if (!item || batch->failed) continue;
    record->stamp = item->stamp;
    record->move = batch;
    ++batch->waiting;
    in_.background.push_back(std::move(record));
    in_.work.notify_all();
  }
  Log::Inside::Lock lock(in_.mutex);
  while (!in_.progress.wait_for(lock, kLook, [&] { return batch->waiting == 0 || in_.appender_done; })) {
    lock.unlock();
    serve_a_move();
    lock.lock();
  }
  return !batch->failed && batch->waiting == 0;
}

// The record as it is on the disk, verified and ready for a new place; null when it cannot be had or does not fit: it is
// forgotten then.
PendingRef Keeper::prepared(const Entry &entry, Codec codec) {
  auto out = std::make_shared<Pending>();
  out->from = out->entry = entry;
  uint64_t bytes = record_bytes(entry.stored_bytes);
  try {
    auto file = in_.files.get(in_.log, entry.segment);
    if (file->digest != in_.digest || bytes + 5 * kPage > in_.options.segment_bytes) return nullptr;
    {
      Log::Inside::Lock lock(in_.mutex);
      // A forged summary may name blocks without their namespace: no segment could explain them.
      if (!in_.namespaces.contains(entry.key.name_space)) return nullptr;
    }
    // Room comes back as the appender settles; it settles or refuses everything it was given.
    while (!(out->buffer = in_.move_buffers->take(bytes, Clock::now() + kLook))) serve_a_move();
    if (!queue_) queue_ = in_.io->queue();
    Op op;
    op.kind = Fault::Kind::read;
    op.descriptor = file->descriptor();
    op.data = out->buffer.data();
    op.bytes = bytes;
    op.offset = entry.offset;
    queue_->push(&op);
    while (!queue_->take(Clock::now() + std::chrono::seconds(1))) {
    }
    Record record;
    uint8_t *stored = out->buffer.data() + kPage;
    Place place{in_.log, entry.segment, entry.offset, file->header.segment_bytes};
    bool holds = !op.error && !parse_record(out->buffer.data(), kPage, place, *in_.digest, record) &&
                 record.entry.key == entry.key && record.entry.stored_bytes == entry.stored_bytes;
    for (uint32_t i = 0; holds && i < record.chunks; ++i) {
      uint64_t at = uint64_t{i} * record.chunk_bytes;
      uint64_t size = std::min<uint64_t>(record.chunk_bytes, entry.stored_bytes - at);
      holds = chunk_digest(*in_.digest, entry.key.link, i, stored + at, size) == record.chunk_digests[i];
    }
    if (!holds) {
      in_.drop(entry);
      return nullptr;
    }
    if (codec == Codec::none || entry.codec != Codec::none) return out;
    out->tried = true;
    Buffer packed = packing_->take(bytes, Clock::now());
    size_t size = pack(codec, stored, entry.stored_bytes, packed.data() + kPage, entry.stored_bytes - 1);
    if (!worth_it(size, entry.stored_bytes)) return out;
    std::memset(packed.data() + kPage + size, 0, whole_pages(size) - size);
    build_record(Kind::block, codec, entry.key, packed.data() + kPage, size, *in_.digest, packed.data());
    out->buffer = std::move(packed);
    out->entry.codec = codec;
    out->entry.stored_bytes = size;
    return out;
  } catch (const Fail &why) {
    if (why.code == GFT_INTERNAL) throw;
    return nullptr;
  }
}

bool Keeper::pays(const std::vector<Entry> &entries, Codec codec) {
  size_t tried = 0, won = 0, step = std::max<size_t>(1, entries.size() / kSamples);
  for (size_t i = 0; i < entries.size(); i += step) {
    if (entries[i].codec != Codec::none) continue;
    PendingRef record = prepared(entries[i], codec);
    ++tried;
    won += record && record->entry.codec != Codec::none;
  }
  return won * 2 > tried;
}

bool Keeper::compress() {
  Codec codec = in_.options.compress;
  if (codec == Codec::none || Clock::now() < next_compression_ || !idle()) return false;
  uint64_t number = 0;
  std::vector<Entry> entries;
  {
    Log::Inside::Lock lock(in_.mutex);
    for (const auto &[each, state] : in_.segments)
      if (state.limit && !(state.flags & kTried) && in_.index.uncompressed_bytes(each)) {
        number = each;
        entries = in_.index.entries(each);
        break;
      }
  }
  next_compression_ = Clock::now() + kPause;
  if (!number) return false;
  if (pays(entries, codec)) {
    if (!move(entries, codec)) return false;
    remove(number);
  } else {
    write_super([&](Super &super) {
      for (SuperEntry &entry : super.segments)
        if (entry.segment == number) entry.flags |= kTried;
    });
    Log::Inside::Lock lock(in_.mutex);
    in_.segments[number].flags |= kTried;
  }
  next_compression_ = {};
  return true;
}

}  // namespace gft::disk
