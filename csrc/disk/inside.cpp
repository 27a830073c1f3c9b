// The small shared parts of an open log: refusing, settling, superblocks as data, idle queues.
// What is marked "with the lock" in inside.h runs under the log's mutex and does no disk I/O.
#include "inside.h"

#include <algorithm>

#include "../support/fork_guard.h"
#include "codec.h"

namespace gft::disk {
namespace {

constexpr auto kFirstPause = std::chrono::milliseconds(250), kLongestPause = std::chrono::milliseconds(60'000);

void check_options(const Options &options) {
  auto bad = [](const char *what, uint64_t value, const char *rule) {
    fail(GFT_INVALID, "disk log option %s is %llu; it must be %s", what, (unsigned long long)value, rule);
  };
  if (options.segment_bytes < kMinSegment || options.segment_bytes > kMaxSegment)
    bad("segment_bytes", options.segment_bytes, "between 64 KiB and 4 GiB");
  if (options.cap_bytes && options.cap_bytes < 8 * kMinSegment) bad("cap_bytes", options.cap_bytes, "0 or at least 512 KiB");
  if (options.staging_bytes < 16 * kPage) bad("staging_bytes", options.staging_bytes, "at least 64 KiB");
  if (options.depth < 1 || options.depth > 1024) bad("depth", options.depth, "between 1 and 1024");
  if (options.read_threads < 1 || options.read_threads > 64) bad("read_threads", options.read_threads, "between 1 and 64");
  if (options.window_ms > 10'000) bad("window_ms", options.window_ms, "at most 10000");
  if (!have_codec(options.compress))
    fail(GFT_MISMATCH, "this build cannot compress with %s; build with its development package installed",
         codec_name(options.compress));
}

}  // namespace

Log::Inside::Inside(const std::string &path, const Options &given, bool read_only_)
    : options(given),
      read_only(read_only_),
      fork_generation(gft::fork_generation()),
      folder(path, !read_only_, read_only_),
      files(folder, given.direct) {
  check_options(options);
  if (options.cap_bytes)
    options.segment_bytes = std::max(kMinSegment, std::min(options.segment_bytes, options.cap_bytes / 8 / kPage * kPage));
  options.segment_bytes = options.segment_bytes / kPage * kPage;
  digest = options.digest.empty() ? &preferred_digest() : find_digest(options.digest.c_str());
  if (!digest)
    fail(GFT_MISMATCH, "this build lacks the digest \"%s\"; build with <xxhash.h> installed (libxxhash-dev)",
         options.digest.c_str());
  io = Io::choose(options);
  write_buffers = std::make_shared<Buffers>(options.staging_bytes);
  read_buffers = std::make_shared<Buffers>(options.staging_bytes);
  move_buffers = std::make_shared<Buffers>(std::min<uint64_t>(options.staging_bytes, uint64_t{16} << 20));
}

bool Log::Inside::forked() const { return fork_generation != gft::fork_generation(); }

void Log::Inside::check() const {
  if (forked())
    fail(GFT_FORKED, "the disk log %s was opened by the parent of this forked process; open it again here",
         folder.path.c_str());
  std::lock_guard lock(mutex);
  if (closed) fail(GFT_CLOSED, "the disk log %s was closed; open it again", folder.path.c_str());
}

void Log::Inside::remember_namespace(const std::string &record) {
  namespaces.emplace(digest->of(record.data(), record.size()), record);
}

void Log::Inside::refuse(gft_status status, const std::string &text, bool for_good) {
  if (refusal.for_good) return;
  bool again = refusal.status == status;
  refusal.status = status;
  refusal.text = text;
  refusal.for_good = for_good;
  refusal.pause = again || refusal.pause.count() ? std::min(refusal.pause * 2, kLongestPause) : kFirstPause;
  refusal.retry = Clock::now() + refusal.pause;
  work.notify_all();
  chores.notify_all();
}

uint64_t Log::Inside::disk_bytes() const {
  uint64_t sum = 0;
  for (const auto &[number, state] : segments) sum += state.file_bytes;
  return sum;
}

Super Log::Inside::super() const {
  Super out;
  out.log = log;
  for (const auto &[number, state] : segments) out.segments.push_back({number, state.limit, state.flags});
  return out;
}

void Log::Inside::settle(const PendingRef &record, gft_status status) {
  if (record->move) {
    if (status == GFT_OK && index.points_to(record->from)) {
      index.add(record->entry, record->tried, record->stamp);
      ++counts.moved;
    }
    record->move->failed = record->move->failed || status != GFT_OK;
    --record->move->waiting;
  } else if (record->kind == Kind::block) {
    if (status == GFT_OK) {
      index.add(record->entry, false);
      counts.appended += record->tickets.size();
      counts.appended_bytes += record->entry.key.payload_bytes;
    } else {
      counts.failed += record->tickets.size();
    }
    for (uint64_t ticket : record->tickets) settled.push_back({ticket, status});
    pending -= record->tickets.size();
    on_the_way.erase(record->entry.key.link);
  }
  progress.notify_all();
}

std::unique_ptr<Queue> Log::Inside::borrow_queue() {
  {
    std::lock_guard lock(queues_mutex);
    if (!idle_queues.empty()) {
      auto queue = std::move(idle_queues.back());
      idle_queues.pop_back();
      return queue;
    }
  }
  return io->queue();
}

void Log::Inside::give_back(std::unique_ptr<Queue> queue) {
  std::lock_guard lock(queues_mutex);
  if (idle_queues.size() < 8) idle_queues.push_back(std::move(queue));
}

}  // namespace gft::disk
