// Reads many records at once: what is needed of each (whole, or its header and the chunks that cover the ranges), in any
// order, verified as it arrives, copied out last. Memory the kernel may still write to outlives a deadline on its own.
#include <algorithm>
#include <cstring>
#include <thread>

#include "../support/quiet.h"
#include "codec.h"
#include "inside.h"

namespace gft::disk {
namespace {

struct Span {
  uint64_t from, bytes;  // of the record, header page included
};

struct Job {
  Read *read = nullptr;
  SegmentRef file;
  std::vector<Span> spans;
  bool whole = false;
  Buffer buffer;  // the spans one behind the other
  std::vector<std::unique_ptr<Op>> ops;
  size_t in_flight = 0;
  int error = 0;
};

// What has to live until the kernel is done with it.
struct Batch {
  std::unique_ptr<Queue> queue;
  std::vector<std::unique_ptr<Job>> jobs;
  std::shared_ptr<Io> io;
};

std::vector<Span> spans_of(const Read &read, bool &whole) {
  uint64_t stored = read.entry.stored_bytes, chunk = chunk_for(stored), sum = 0;
  for (const Range &range : read.ranges) sum += range.bytes;
  whole = read.entry.codec != Codec::none || sum >= stored / 2 + stored / 4;
  if (whole) return {{0, record_bytes(stored)}};
  std::vector<Span> wanted;
  for (const Range &range : read.ranges) {
    if (!range.bytes) continue;
    uint64_t first = range.from / chunk * chunk, last = std::min(stored, (range.from + range.bytes + chunk - 1) / chunk * chunk);
    wanted.push_back({kPage + first, whole_pages(last - first)});
  }
  wanted.push_back({0, kPage});
  std::sort(wanted.begin(), wanted.end(), [](const Span &a, const Span &b) { return a.from < b.from; });
  std::vector<Span> out;
  for (const Span &span : wanted) {
    if (!out.empty() && span.from <= out.back().from + out.back().bytes)
      out.back().bytes = std::max(out.back().bytes, span.from + span.bytes - out.back().from);
    else
      out.push_back(span);
  }
  return out;
}

// Where byte `at` of the record (its header page first) was read to.
const uint8_t *place_of(const Job &job, uint64_t at) {
  const uint8_t *data = job.buffer.data();
  for (const Span &span : job.spans) {
    if (at >= span.from && at < span.from + span.bytes) return data + (at - span.from);
    data += span.bytes;
  }
  return nullptr;
}

void end(Read &read, gft_status status, std::string detail) {
  read.status = status;
  read.detail = std::move(detail);
}

bool chunks_hold(const Job &job, const Record &record) {
  const DigestAlgorithm &digest = *job.file->digest;
  for (uint32_t i = 0; i < record.chunks; ++i) {
    uint64_t at = uint64_t{i} * record.chunk_bytes;
    const uint8_t *data = place_of(job, kPage + at);
    if (!data) continue;  // not asked for
    uint64_t bytes = std::min<uint64_t>(record.chunk_bytes, record.entry.stored_bytes - at);
    if (chunk_digest(digest, record.entry.key.link, i, data, bytes) != record.chunk_digests[i])
      return false;
  }
  return true;
}

// One pass when one range takes it all: what is digested is what is delivered.
Digest copy_and_digest(const DigestAlgorithm &digest, uint8_t *to, const uint8_t *from, uint64_t bytes) {
  constexpr uint64_t kStep = 16 << 10;
  DigestState state;
  Digest out;
  digest.start(state);
  for (uint64_t at = 0; at < bytes; at += kStep) {
    uint64_t step = std::min(kStep, bytes - at);
    digest.update(state, from + at, step);
    std::memcpy(to + at, from + at, step);
  }
  digest.finish(state, out.data());
  return out;
}

void deliver(Job &job, const Id &log) {
  Read &read = *job.read;
  const Entry &entry = read.entry;
  std::string where = segment_name(entry.segment) + " at byte " + std::to_string(entry.offset);
  if (job.error) {
    end(read, job.error == ENODATA ? GFT_DAMAGED : GFT_IO,
        "cannot read " + where + ": " + (job.error == ENODATA ? "the file ends before" : std::strerror(job.error)) +
            "; recompute the block");
    return;
  }
  Record record;
  Place place{log, entry.segment, entry.offset, job.file->header.segment_bytes};
  const char *why = parse_record(job.buffer.data(), kPage, place, *job.file->digest, record);
  if (!why && (record.kind != Kind::block || record.entry.key != entry.key || record.entry.codec != entry.codec ||
               record.entry.stored_bytes != entry.stored_bytes))
    why = "another record lies there";
  if (why) {
    end(read, GFT_DAMAGED, "the record in " + where + " is damaged: " + why + "; recompute the block");
    return;
  }
  const DigestAlgorithm &digest = *job.file->digest;
  const uint8_t *payload = job.buffer.data() + kPage;
  std::string differs = "the payload of the record in " + where + " is not what was stored; recompute the block";
  Buffer unpacked;
  if (entry.codec != Codec::none) {
    if (!chunks_hold(job, record)) return end(read, GFT_DIGEST, differs);
    auto memory = std::make_shared<Buffers>(Buffers::kUnlimited);
    unpacked = memory->take(entry.key.payload_bytes, Clock::now());
    if (!unpack(entry.codec, payload, entry.stored_bytes, unpacked.data(), entry.key.payload_bytes))
      return end(read, GFT_DAMAGED, "the record in " + where + " does not unpack to its length; recompute the block");
    payload = unpacked.data();
  }
  bool in_one = job.whole && read.ranges.size() == 1 && read.ranges[0].from == 0 &&
                read.ranges[0].bytes == entry.key.payload_bytes;
  if (in_one) {
    if (copy_and_digest(digest, read.ranges[0].to, payload, entry.key.payload_bytes) != entry.key.digest)
      return end(read, GFT_DIGEST, differs);
    return end(read, GFT_OK, "");
  }
  if (job.whole ? digest.of(payload, entry.key.payload_bytes) != entry.key.digest : !chunks_hold(job, record))
    return end(read, GFT_DIGEST, differs);
  for (const Range &range : read.ranges) {
    uint64_t chunk = job.whole ? UINT64_MAX : record.chunk_bytes;
    for (uint64_t at = range.from; at < range.from + range.bytes;) {  // runs of chunks lie together, so this is one step
      uint64_t bytes = std::min(range.from + range.bytes - at, job.whole ? range.bytes : chunk - at % chunk);
      std::memcpy(range.to + (at - range.from), job.whole ? payload + at : place_of(job, kPage + at), bytes);
      at += bytes;
    }
  }
  end(read, GFT_OK, "");
}

}  // namespace

void Log::Inside::drop(const Entry &entry) {
  Lock lock(mutex);
  if (!index.kill(entry)) return;
  ++counts.dropped;
  auto state = segments.find(entry.segment);
  if (state != segments.end()) state->second.summarised = false;
  chores.notify_all();
}

void Log::Inside::read_records(std::span<Read> reads, Clock::time_point deadline) {
  auto batch = std::make_shared<Batch>();
  batch->io = io;
  batch->queue = borrow_queue();
  Queue &queue = *batch->queue;
  // Null: `read` has its answer already. No room in the staging memory until `until`: GFT_TIMED_OUT.
  auto begin = [&](Read &read, Clock::time_point until) {
    auto job = std::make_unique<Job>();
    job->read = &read;
    const Entry &entry = read.entry;
    for (const Range &range : read.ranges)
      if (range.bytes > entry.key.payload_bytes || range.from > entry.key.payload_bytes - range.bytes) {
        end(read, GFT_INVALID, "a range lies outside the payload of " + std::to_string(entry.key.payload_bytes) + " bytes");
        return std::unique_ptr<Job>();
      }
    // A collected record may have a new place, and may get it between the two looks.
    for (int looks = 0; !job->file; ++looks) {
      {
        Lock lock(mutex);
        if (!index.points_to(entry))
          if (auto now = index.entry_of(entry.key.link)) read.entry = *now;
      }
      try {
        job->file = files.get(log, entry.segment);
      } catch (const Fail &why) {
        if (why.code == GFT_NOT_FOUND && looks < 8) continue;
        if (why.code != GFT_IO && why.code != GFT_INTERNAL) drop(entry);  // so that it can be stored again
        end(read, why.code, why.text);
        return std::unique_ptr<Job>();
      }
    }
    uint64_t room = job->file->header.segment_bytes;
    if (!job->file->digest || !have_codec(entry.codec)) {
      end(read, GFT_MISMATCH, "this build lacks the digest or codec of " + segment_name(entry.segment) +
                                  "; build with the libraries it was written with, or recompute the block");
    } else if (entry.offset % kPage || entry.offset > room || entry.stored_bytes == 0 || entry.stored_bytes > room ||
               record_bytes(entry.stored_bytes) > room - entry.offset || entry.key.payload_bytes > room) {
      end(read, GFT_DAMAGED, "the entry names no place in " + segment_name(entry.segment));
    } else {
      job->spans = spans_of(read, job->whole);
      uint64_t bytes = 0;
      for (const Span &span : job->spans) bytes += span.bytes;
      job->buffer = read_buffers->take(bytes, until);
      if (job->buffer) return job;
      end(read, GFT_TIMED_OUT, "no staging memory became free before the deadline; recompute the block");
    }
    return std::unique_ptr<Job>();
  };
  auto push = [&](std::unique_ptr<Job> job) {
    uint8_t *to = job->buffer.data();
    for (const Span &span : job->spans)
      for (uint64_t at = 0, piece = piece_of(span.bytes); at < span.bytes; at += piece) {
        auto op = std::make_unique<Op>();
        op->descriptor = job->file->descriptor();
        op->bytes = std::min(piece, span.bytes - at);
        op->data = to;
        to += op->bytes;
        op->offset = job->read->entry.offset + span.from + at;
        op->owner = reinterpret_cast<uint64_t>(job.get());
        ++job->in_flight;
        queue.push(op.get());
        job->ops.push_back(std::move(op));
      }
    batch->jobs.push_back(std::move(job));
  };
  size_t next = 0;
  uint64_t good = 0, good_bytes = 0, bad = 0;
  for (Read &read : reads) end(read, GFT_TIMED_OUT, "the deadline passed before the record was read; recompute the block");
  while (next < reads.size() || queue.in_flight()) {
    while (next < reads.size() && queue.in_flight() < options.depth) {
      if (Clock::now() >= deadline) {
        next = reads.size();
        break;
      }
      Read &read = reads[next];
      // With something under way, its memory comes back to us: waiting for more would be waiting for ourselves.
      bool waits = queue.in_flight() == 0;
      auto job = begin(read, waits ? deadline : Clock::now());
      if (!job && !waits && read.status == GFT_TIMED_OUT) break;
      ++next;
      if (job) push(std::move(job));
    }
    if (!queue.in_flight()) continue;
    Op *op = queue.take(deadline);
    if (!op) break;
    auto &job = *reinterpret_cast<Job *>(op->owner);
    if (op->error) job.error = op->error;
    if (--job.in_flight) continue;
    Read &read = *job.read;
    deliver(job, log);
    if (read.status == GFT_OK) {
      ++good;
      for (const Range &range : read.ranges) good_bytes += range.bytes;
    } else if (read.status == GFT_DIGEST || read.status == GFT_DAMAGED) {
      ++bad;
      drop(read.entry);
    }
    std::erase_if(batch->jobs, [&](const auto &each) { return each.get() == &job; });
  }
  {
    Lock lock(mutex);
    counts.read += good;
    counts.read_bytes += good_bytes;
    counts.read_bad += bad;
  }
  if (!queue.in_flight()) return give_back(std::move(batch->queue));
  SignalsBlocked quiet;
  std::thread([batch = std::move(batch)] {
    while (batch->queue->in_flight()) (void)batch->queue->take(Clock::now() + std::chrono::seconds(1));
  }).detach();
}

}  // namespace gft::disk
