// The log's door: checks arguments, copies payloads in, and hands everything else to the parts.
// Appends and reads run in the caller's thread; only the writing itself is the appender's.
#include "log.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../support/optimistic.h"
#include "../support/quiet.h"
#include "../support/together.h"
#include "codec.h"
#include "inside.h"

namespace gft::disk {
namespace {

constexpr uint64_t kWorthAThread = uint64_t{1} << 20;  // less is read and digested sooner than a thread starts

// Copies chunk by chunk, digesting what arrived: the source may change meanwhile, the record never contradicts itself.
Digest copy_in(const DigestAlgorithm &digest, const uint8_t *from, uint64_t bytes, uint8_t *page) {
  OptimisticRead source_may_change;
  auto &header = *reinterpret_cast<RecordHeader *>(page);
  uint8_t *to = page + kPage;
  DigestState state;
  Digest out;
  digest.start(state);
  for (uint32_t i = 0; i < header.chunks; ++i) {
    uint64_t at = uint64_t{i} * header.chunk_bytes, step = std::min<uint64_t>(header.chunk_bytes, bytes - at);
    std::memcpy(to + at, from + at, step);
    digest.update(state, to + at, step);
    Id chunk = chunk_digest(digest, std::to_array(header.link), i, to + at, step);
    std::memcpy(header.chunk_digests[i], chunk.data(), 16);
  }
  std::memset(to + bytes, 0, whole_pages(bytes) - bytes);
  digest.finish(state, out.data());
  return out;
}

}  // namespace

std::shared_ptr<Log> Log::open(const std::string &folder, const Options &options, bool read_only) {
  auto started = Clock::now();
  SignalsBlocked quiet;
  std::shared_ptr<Inside> inside;
  if (!read_only) {
    try {
      inside = std::make_shared<Inside>(folder, options, false);
      inside->open_writer();
      inside->start_threads();
    } catch (const Fail &why) {
      if (why.code != GFT_READ_ONLY && why.code != GFT_NO_SPACE && why.code != GFT_IO) throw;
      // Not writable, but perhaps readable: what is there can still be restored.
      inside = nullptr;
      try {
        inside = std::make_shared<Inside>(folder, options, true);
        inside->open_reader();
      } catch (const Fail &) {
        throw why;
      }
      inside->refusal.status = why.code;
      inside->refusal.text = why.text;
      inside->refusal.for_good = true;
    }
  } else {
    inside = std::make_shared<Inside>(folder, options, true);
    inside->open_reader();
  }
  inside->open_seconds = std::chrono::duration<double>(Clock::now() - started).count();
  return std::shared_ptr<Log>(new Log(std::move(inside)));
}

Log::~Log() {
  if (inside_->forked()) {
    new std::shared_ptr<Inside>(inside_);  // its threads and locks are the parent's: nothing here may be torn down
    return;
  }
  (void)close(Clock::now() + std::chrono::seconds(1));
}

gft_status Log::append(const Key &key, const uint8_t *payload, uint64_t ticket, Clock::time_point deadline,
                       std::string *detail) {
  Inside &in = *inside_;
  auto say = [&](gft_status status, const std::string &text) {
    if (detail) *detail = text;
    return status;
  };
  try {
    in.check();
    // With the lock: GFT_OK when the record is wanted, and `joined` when it is on its way already.
    bool joined = false;
    auto admit = [&](std::string &why) {
      if (in.refusal.status) {
        why = in.refusal.text;
        return in.refusal.status;
      }
      if (in.read_only) return GFT_READ_ONLY;
      if (in.stop) return GFT_CLOSED;
      if (in.index.by_link(key.link)) return GFT_PRESENT;
      auto same = in.on_the_way.find(key.link);
      if (same == in.on_the_way.end()) return GFT_OK;
      same->second->tickets.push_back(ticket);
      ++in.pending;
      joined = true;
      return GFT_OK;
    };
    {
      Inside::Lock lock(in.mutex);
      if (!in.read_only && !in.namespaces.contains(key.name_space))
        return say(GFT_INVALID, "the block's namespace is not in the disk log; add it with add_namespace first");
      std::string why;
      gft_status status = admit(why);
      if (status != GFT_OK || joined) return say(status, why);
    }
    if (const char *why = check_key(key, *in.digest))
      return say(GFT_INVALID, std::string("the block's identity breaks a rule: ") + why);
    if (key.payload_bytes > kMaxSegment || record_bytes(key.payload_bytes) + 5 * kPage > in.options.segment_bytes)
      return say(GFT_INVALID, "a payload of " + std::to_string(key.payload_bytes) + " bytes does not fit into a segment of " +
                                  std::to_string(in.options.segment_bytes) + "; use larger segments or a larger cap");
    auto record = std::make_shared<Pending>();
    record->entry.key = key;
    record->entry.stored_bytes = key.payload_bytes;
    record->tickets.push_back(ticket);
    record->buffer = in.write_buffers->take(record->bytes(), deadline);
    if (!record->buffer)
      return say(GFT_TIMED_OUT, "the disk is behind: no staging memory became free before the deadline; try later");
    build_record(Kind::block, Codec::none, key, nullptr, key.payload_bytes, *in.digest, record->buffer.data());
    if (copy_in(*in.digest, payload, key.payload_bytes, record->buffer.data()) != key.digest)
      return say(GFT_DIGEST, "the payload changed while it was copied, or is not the block's; it was not stored");
    Inside::Lock lock(in.mutex);
    std::string why;
    gft_status status = admit(why);
    if (status != GFT_OK || joined) return say(status, why);
    in.on_the_way[key.link] = record;
    ++in.pending;
    in.last_append = Clock::now();
    in.queue.push_back(std::move(record));
    in.work.notify_all();
    return GFT_OK;
  } catch (...) {
    Fail why = current_failure();
    return say(why.code, why.text);
  }
}

std::vector<Settled> Log::poll() {
  Inside::Lock lock(inside_->mutex);
  return std::exchange(inside_->settled, {});
}

bool Log::flush(Clock::time_point deadline) {
  Inside &in = *inside_;
  in.check();
  Inside::Lock lock(in.mutex);
  ++in.waiting_flushes;
  in.work.notify_all();
  bool all = in.progress.wait_until(lock, deadline, [&] { return in.pending == 0; });
  --in.waiting_flushes;
  return all;
}

Id Log::add_namespace(const void *record, size_t bytes) {
  inside_->check();
  if (bytes == 0 || bytes > kMaxNamespace)
    fail(GFT_INVALID, "a namespace record of %zu bytes; it must have between 1 and %u", bytes, kMaxNamespace);
  Inside::Lock lock(inside_->mutex);
  inside_->remember_namespace(std::string(static_cast<const char *>(record), bytes));
  return inside_->digest->of(record, bytes);
}

void Log::touch(std::span<const Id> links) {
  Inside::Lock lock(inside_->mutex);
  for (const Id &link : links) inside_->index.touch(link);
}

void Log::hold(std::span<const Id> links) {
  Inside::Lock lock(inside_->mutex);
  for (const Id &link : links) inside_->index.hold(link);
}

void Log::release(std::span<const Id> links) {
  Inside::Lock lock(inside_->mutex);
  for (const Id &link : links) inside_->index.release(link);
}

std::vector<Entry> Log::find(const Id &name_space, uint32_t shard, std::string_view hash, int64_t position) const {
  Inside::Lock lock(inside_->mutex);
  return inside_->index.find(name_space, shard, hash, position);
}

bool Log::find_link(const Id &link, Entry &out) const {
  Inside::Lock lock(inside_->mutex);
  auto found = inside_->index.entry_of(link);
  if (found) out = std::move(*found);
  return found.has_value();
}

void Log::refresh() {
  Inside &in = *inside_;
  in.check();
  if (!in.read_only) return;
  Inside::Lock lock(in.mutex);
  Pulse now{};
  if (in.lock_file) {
    now = read_pulse(in.lock_file);
    if (now == in.pulse) return;
  }
  uint64_t highest;
  auto super = newest_super(in.folder, highest);
  if (super && super->log == in.log) in.follow(std::move(*super), now);
  in.pulse = now;
}

void Log::read(std::span<Read> reads, Clock::time_point deadline) {
  inside_->check();
  uint64_t bytes = 0;
  for (const Read &read : reads)
    for (const Range &range : read.ranges) bytes += std::min(range.bytes, kMaxSegment);
  size_t parts = std::min<uint64_t>({read_threads(), reads.size(), bytes / kWorthAThread + 1});
  together(static_cast<unsigned>(parts), parts, [&](size_t i) {
    size_t from = reads.size() * i / parts, to = reads.size() * (i + 1) / parts;
    inside_->read_records(reads.subspan(from, to - from), deadline);
  });
}

unsigned Log::read_threads() const { return inside_->options.read_threads; }

void Log::drop(const Entry &entry) { inside_->drop(entry); }

std::vector<Entry> Log::entries() const {
  Inside::Lock lock(inside_->mutex);
  return inside_->index.entries();
}

std::vector<std::string> Log::namespaces() const {
  Inside::Lock lock(inside_->mutex);
  std::vector<std::string> out;
  for (const auto &[id, record] : inside_->namespaces) out.push_back(record);
  return out;
}

uint64_t Log::max_epoch() const {
  Inside::Lock lock(inside_->mutex);
  return inside_->index.max_epoch();
}

Stats Log::stats() const {
  Inside &in = *inside_;
  Inside::Lock lock(in.mutex);
  Stats out = in.counts;
  out.segments = in.segments.size();
  out.disk_bytes = in.disk_bytes();
  out.records = in.index.live();
  out.live_bytes = in.index.live_bytes();
  out.payload_bytes = in.index.payload_bytes();
  out.compressed = in.index.compressed();
  out.held = in.index.held_count();
  out.pending = in.pending;
  out.term = in.pulse.term;
  out.max_epoch = in.index.max_epoch();
  out.writable = !in.read_only && !in.refusal.status && !in.stop;
  out.reason = in.refusal.status;
  out.reason_text = in.refusal.status ? in.refusal.text : "";
  out.backend = in.io->name();
  out.direct = in.options.direct && in.files.direct();
  out.digest = in.digest->name;
  out.open_seconds = in.open_seconds;
  return out;
}

bool Log::close(Clock::time_point deadline) {
  Inside &in = *inside_;
  if (in.forked()) return true;
  Inside::Lock lock(in.mutex);
  in.stop = true;
  in.work.notify_all();
  in.chores.notify_all();
  bool ended = in.progress.wait_until(lock, deadline, [&] { return in.threads_alive == 0; });
  in.closed = true;
  return ended;
}

}  // namespace gft::disk
