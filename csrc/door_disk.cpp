// The door's disk half: translates between gft_disk.h and disk/log.h.
// One short body per function; the promises are in the header.
#include <cmath>
#include <cstring>

#include "disk/codec.h"
#include "disk/io.h"
#include "disk/log.h"
#include "disk/parse.h"
#include "disk/users.h"
#include "door.h"
#include "door_disk.h"
#include "gft_disk.h"

using gft::behind_wall;
using namespace gft::disk;

namespace {

constexpr const char *kNumbers[] = {"segments",  "disk_bytes", "records",  "live_bytes", "payload_bytes", "compressed",
                                    "held",      "appended",   "appended_bytes", "pending", "commits",    "failed",
                                    "read",      "read_bytes", "read_bad", "moved",      "evicted",       "dropped",
                                    "collected", "term",       "max_epoch", "writable",  "direct",        "open_seconds"};

Clock::time_point after(double seconds) {
  double bounded = std::isfinite(seconds) ? std::min(std::max(seconds, 0.0), 1e6) : 1e6;
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(bounded));
}

Id id_of(const uint8_t bytes[16]) {
  Id out;
  std::memcpy(out.data(), bytes, 16);
  return out;
}

Key key_of(const gft_disk_key &from) {
  if (from.hash_bytes > sizeof from.hash)
    gft::fail(GFT_INVALID, "a block hash of %u bytes; it must have between 1 and 64", from.hash_bytes);
  return {id_of(from.name_space), from.shard, from.position, from.epoch, from.payload_bytes,
          std::string(reinterpret_cast<const char *>(from.hash), from.hash_bytes), id_of(from.parent_link), id_of(from.link),
          id_of(from.digest)};
}

Entry entry_of(const gft_disk_entry &from) {
  return {key_of(from.key), from.segment, from.offset, from.stored_bytes, static_cast<Codec>(from.codec)};
}

gft_disk_entry entry_of(const Entry &from) {
  gft_disk_entry out{};
  std::memcpy(out.key.name_space, from.key.name_space.data(), 16);
  std::memcpy(out.key.parent_link, from.key.parent_link.data(), 16);
  std::memcpy(out.key.link, from.key.link.data(), 16);
  std::memcpy(out.key.digest, from.key.digest.data(), 16);
  out.key.position = from.key.position;
  out.key.epoch = from.key.epoch;
  out.key.payload_bytes = from.key.payload_bytes;
  out.key.shard = from.key.shard;
  out.key.hash_bytes = static_cast<uint32_t>(from.key.hash.size());
  std::memcpy(out.key.hash, from.key.hash.data(), from.key.hash.size());
  out.segment = from.segment;
  out.offset = from.offset;
  out.stored_bytes = from.stored_bytes;
  out.codec = static_cast<uint32_t>(from.codec);
  return out;
}

Options options_of(const gft_disk_options &from) {
  if (from.compress > 2 || from.backend > 2)
    gft::fail(GFT_INVALID, "codec %u and backend %u; both are 0, 1 or 2", from.compress, from.backend);
  Options out;
  out.segment_bytes = from.segment_bytes;
  out.cap_bytes = from.cap_bytes;
  out.staging_bytes = from.staging_bytes;
  out.group_bytes = from.group_bytes;
  out.window_ms = from.window_ms;
  out.depth = from.depth;
  out.read_threads = from.read_threads;
  out.idle_ms = from.idle_ms;
  out.live_ratio = from.live_ratio;
  out.compress = static_cast<Codec>(from.compress);
  out.backend = static_cast<Backend>(from.backend);
  out.direct = from.direct != 0;
  out.takeover = from.takeover != 0;
  out.digest = from.digest ? from.digest : "";
  for (size_t i = 0; i < from.fault_count; ++i)
    if (from.faults[i].kind <= 2)
      out.faults.push_back({static_cast<Fault::Kind>(from.faults[i].kind), from.faults[i].nth, from.faults[i].count,
                            from.faults[i].error});
  return out;
}

}  // namespace

const char *gft_disk_number_name(size_t index) { return index < std::size(kNumbers) ? kNumbers[index] : ""; }

void gft_disk_defaults(gft_disk_options *options) {
  Options from;
  *options = {from.segment_bytes, from.cap_bytes, from.staging_bytes, from.group_bytes, from.window_ms, from.depth,
              from.read_threads,  from.idle_ms,   from.live_ratio,    0,                0,              from.direct,
              from.takeover,      "",             nullptr,            0};
}

gft_status gft_disk_open(const char *folder, const gft_disk_options *options, int read_only, gft_disk **out) {
  *out = nullptr;
  return behind_wall([&] { *out = new gft_disk{Log::open(folder, options_of(*options), read_only != 0)}; });
}

void gft_disk_seal(gft_disk_key *key, const uint8_t *payload) {
  const auto &digest = gft::preferred_digest();
  auto sum = digest.of(payload, key->payload_bytes);
  std::memcpy(key->digest, sum.data(), 16);
  key->hash_bytes = std::min<uint32_t>(key->hash_bytes, sizeof key->hash);
  auto link = link_of(key_of(*key), digest);
  std::memcpy(key->link, link.data(), 16);
}

gft_status gft_disk_add_namespace(gft_disk *log, gft_bytes record, uint8_t id[16]) {
  return behind_wall([&] {
    Id made = log->log->add_namespace(record.data, record.size);
    std::memcpy(id, made.data(), 16);
  });
}

gft_status gft_disk_append(gft_disk *log, const gft_disk_key *key, const uint8_t *payload, uint64_t ticket, double seconds) {
  gft_status answer = GFT_OK;
  gft_status status = behind_wall([&] {
    std::string detail;
    answer = log->log->append(key_of(*key), payload, ticket, after(seconds), &detail);
    if (answer != GFT_OK && answer != GFT_PRESENT) gft::remember_error(detail);
  });
  return status == GFT_OK ? answer : status;
}

gft_status gft_disk_poll(gft_disk *log, void (*each)(void *, uint64_t, gft_status), void *context) {
  return behind_wall([&] {
    for (const Settled &one : log->log->poll()) each(context, one.ticket, one.status);
  });
}

gft_status gft_disk_flush(gft_disk *log, double seconds, int *done) {
  return behind_wall([&] { *done = log->log->flush(after(seconds)); });
}

gft_status gft_disk_find(gft_disk *log, const uint8_t name_space[16], uint32_t shard, gft_bytes hash, int64_t position,
                         void (*each)(void *, const gft_disk_entry *), void *context) {
  return behind_wall([&] {
    for (const Entry &entry : log->log->find(id_of(name_space), shard, gft::view(hash), position)) {
      gft_disk_entry out = entry_of(entry);
      each(context, &out);
    }
  });
}

gft_status gft_disk_find_link(gft_disk *log, const uint8_t link[16], gft_disk_entry *out) {
  return behind_wall([&] {
    Entry found;
    if (!log->log->find_link(id_of(link), found)) gft::fail(GFT_NOT_FOUND, "no record with this link; recompute the block");
    *out = entry_of(found);
  });
}

gft_status gft_disk_entries(gft_disk *log, void (*each)(void *, const gft_disk_entry *), void *context) {
  return behind_wall([&] {
    for (const Entry &entry : log->log->entries()) {
      gft_disk_entry out = entry_of(entry);
      each(context, &out);
    }
  });
}

gft_status gft_disk_namespaces(gft_disk *log, void (*each)(void *, gft_bytes), void *context) {
  return behind_wall([&] {
    for (const std::string &record : log->log->namespaces())
      each(context, {reinterpret_cast<const uint8_t *>(record.data()), record.size()});
  });
}

gft_status gft_disk_read_many(gft_disk *log, gft_disk_read *reads, size_t count, double seconds,
                              void (*detail)(void *, size_t, const char *), void *context) {
  return behind_wall([&] {
    std::vector<Read> all(count);
    for (size_t i = 0; i < count; ++i) {
      all[i].entry = entry_of(*reads[i].entry);
      for (size_t r = 0; r < reads[i].range_count; ++r)
        all[i].ranges.push_back({reads[i].ranges[r].from, reads[i].ranges[r].bytes, reads[i].ranges[r].to});
    }
    log->log->read(all, after(seconds));
    for (size_t i = 0; i < count; ++i) {
      reads[i].status = all[i].status;
      if (detail && all[i].status != GFT_OK) detail(context, i, all[i].detail.c_str());
    }
  });
}

gft_status gft_disk_mark(gft_disk *log, const uint8_t (*links)[16], size_t count, int what) {
  return behind_wall([&] {
    std::vector<Id> all;
    for (size_t i = 0; i < count; ++i) all.push_back(id_of(links[i]));
    if (what == 0) log->log->touch(all);
    if (what == 1) log->log->hold(all);
    if (what == 2) log->log->release(all);
  });
}

gft_status gft_disk_drop(gft_disk *log, const gft_disk_entry *entry) {
  return behind_wall([&] { log->log->drop(entry_of(*entry)); });
}

gft_status gft_disk_refresh(gft_disk *log) {
  return behind_wall([&] { log->log->refresh(); });
}

gft_status gft_disk_get_stats(gft_disk *log, void (*each)(void *, const gft_disk_stats *), void *context) {
  return behind_wall([&] {
    Stats now = log->log->stats();
    const uint64_t whole[] = {now.segments,  now.disk_bytes, now.records,  now.live_bytes, now.payload_bytes, now.compressed,
                              now.held,      now.appended,   now.appended_bytes, now.pending, now.commits,    now.failed,
                              now.read,      now.read_bytes, now.read_bad, now.moved,      now.evicted,       now.dropped,
                              now.collected, now.term,       now.max_epoch, now.writable,  now.direct};
    static_assert(std::size(whole) + 1 == std::size(kNumbers));
    double numbers[std::size(kNumbers)];
    std::copy(std::begin(whole), std::end(whole), numbers);
    numbers[std::size(whole)] = now.open_seconds;
    gft_disk_stats out{numbers, std::size(numbers), now.reason, now.reason_text.c_str(), now.backend.c_str(), now.digest.c_str()};
    each(context, &out);
  });
}

gft_status gft_disk_close(gft_disk *log, double seconds, int *done) {
  return behind_wall([&] { *done = log->log->close(after(seconds)); });
}

void gft_disk_free(gft_disk *log) { delete log; }

gft_status gft_disk_users(const char *folder, uint64_t *writer, int *readers) {
  return behind_wall([&] {
    Users found = users_of(folder);
    *writer = found.writer ? std::max<uint64_t>(found.pid, 1) : 0;
    *readers = found.readers;
  });
}

gft_status gft_disk_set_aside(const char *folder, const char *to, int even_if_read) {
  return behind_wall([&] { set_aside(folder, to, even_if_read != 0); });
}

const char *gft_disk_uring_version(void) { return uring_version(); }
const char *gft_disk_codec_version(uint32_t codec) { return codec <= 2 ? codec_version(static_cast<Codec>(codec)) : "absent"; }
