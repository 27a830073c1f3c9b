// Opening: the newest superblock says which segments count; summaries say what is in them; segments without one are scanned.
// The same code follows a live writer: a reader loads what is new and walks on in what still grows.
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "../support/quiet.h"
#include "appender.h"
#include "keeper.h"

namespace gft::disk {
namespace {

constexpr uint64_t kMostSummaryBytes = uint64_t{1} << 30;
constexpr int kMostLooks = 8;  // of a reader whose writer collects faster than it reads

uint64_t segment_of(const std::string &name) {
  unsigned long long term = 0, number = 0;
  if (std::sscanf(name.c_str(), "seg-%8llx-%8llx", &term, &number) != 2 && std::sscanf(name.c_str(), "sum-%8llx-%8llx", &term, &number) != 2)
    return 0;
  uint64_t segment = term << 32 | number;
  return name == segment_name(segment) || name == summary_name(segment) ? segment : 0;
}

}  // namespace

bool Log::Inside::load_segment(uint64_t number, SegmentState &state, bool mine) {
  if (state.limit && !state.walk.next) {
    // The shortcut: no byte of the segment itself is read.
    try {
      std::string name = summary_name(number);
      auto bytes = read_small(folder.open(name, O_RDONLY), folder.path_of(name), kMostSummaryBytes);
      Summary summary;
      if (!parse_summary(bytes.data(), bytes.size(), log, number, summary) && summary.limit == state.limit &&
          find_digest(summary.digest_name.c_str())) {
        uint64_t there = folder.open(segment_name(number), O_RDONLY).size();
        for (const std::string &record : summary.namespaces) {
          remember_namespace(record);
          state.named.insert(digest->of(record.data(), record.size()));
        }
        for (const Entry &entry : summary.entries)
          if (entry.offset + record_bytes(entry.stored_bytes) <= there) index.add(entry, state.flags & kTried);
        state.summarised = there >= state.limit;
        state.file_bytes = there;
        return true;
      }
    } catch (const Fail &why) {
      if (why.code == GFT_INTERNAL) throw;
    }
  }
  try {
    auto file = files.get(log, number);
    Scanned found;
    scan(*file, state.limit, state.walk, found);
    for (const std::string &record : found.namespaces) {
      remember_namespace(record);
      state.named.insert(digest->of(record.data(), record.size()));
    }
    for (const Entry &entry : found.entries) index.add(entry, state.flags & kTried);
    state.file_bytes = file->file.size();
    if (mine) state.limit = std::max(kPage, state.walk.next);  // nothing behind this ever counts
    return true;
  } catch (const Fail &why) {
    if (why.code == GFT_INTERNAL) throw;
    unreadable = unreadable || (why.code != GFT_NOT_FOUND && why.code != GFT_DAMAGED);
    return false;  // gone, or no segment of ours: its blocks are recomputed
  }
}

bool Log::Inside::load(const Super &super, bool mine) {
  bool all = true;
  std::set<uint64_t> named;
  for (const SuperEntry &entry : super.segments) {
    named.insert(entry.segment);
    auto known = segments.find(entry.segment);
    SegmentState state;
    if (known != segments.end()) {
      if (known->second.limit) continue;
      state = known->second;  // still growing when we looked last: walk on
    }
    state.flags = entry.flags;
    state.limit = entry.limit;
    if (load_segment(entry.segment, state, mine))
      segments[entry.segment] = state;
    else
      all = false;
  }
  for (auto at = segments.begin(); at != segments.end();) {
    if (named.contains(at->first)) {
      ++at;
      continue;
    }
    index.remove_segment(at->first);
    files.forget(at->first);
    at = segments.erase(at);
  }
  return all;
}

void Log::Inside::follow(Super super, const Pulse &now) {
  for (int looks = 1;; ++looks) {
    bool all = load(super, false);
    bool newest = super.term != now.term || super.generation >= now.generation;
    if ((all && newest) || looks == kMostLooks) return;
    // A segment that was collected between the two reads: its blocks have a place that a newer superblock names. One that
    // is missing although nothing changed is lost, and so are its blocks.
    uint64_t highest;
    auto next = newest_super(folder, highest);
    if (!next || next->log != log || std::pair(next->term, next->generation) == std::pair(super.term, super.generation)) return;
    super = std::move(*next);
  }
}

Super Log::Inside::rebuilt() const {
  Super out;
  bool first = true;
  for (const std::string &name : folder.names()) {
    uint64_t number = segment_of(name);
    if (!number || name != segment_name(number)) continue;
    try {
      auto file = open_segment(folder, first ? nullptr : &out.log, number, options.direct);
      out.log = file->log();
      first = false;
      out.segments.push_back({number, 0, 0});
    } catch (const Fail &why) {
      if (why.code == GFT_INTERNAL) throw;
    }
  }
  return out;
}

void Log::Inside::open_writer() {
  lease = std::make_unique<Lease>(folder, options.takeover);
  uint64_t highest;
  auto former = newest_super(folder, highest);
  if (!former) former = rebuilt();
  log = former->log;
  if (log == Id{} && getrandom(log.data(), log.size(), 0) != static_cast<ssize_t>(log.size()))
    fail(GFT_IO, "cannot make an identity for the disk log %s; the kernel has no random numbers yet: try again",
         folder.path.c_str());
  load(*former, true);
  // Former segments without a committed record.
  for (auto at = segments.begin(); at != segments.end();) at = at->second.limit > kPage ? std::next(at) : segments.erase(at);
  lease->write(super());
  if (lease->fenced())
    fail(GFT_FENCED, "another process took over the disk log %s while it was being opened", folder.path.c_str());
  lease->retire_former();
  pulse = {lease->term(), lease->generation(), 0, static_cast<uint64_t>(getpid())};
  lease->beat(pulse);
  if (unreadable) return;  // what could not be looked at may hold blocks yet
  for (const std::string &name : folder.names()) {
    uint64_t number = segment_of(name);
    bool left_over = name.ends_with(".new") && name.starts_with("sum-");
    if (left_over || (number && (number >> 32) < lease->term() && !segments.contains(number))) folder.remove(name);
  }
}

void Log::Inside::open_reader() {
  uint64_t highest;
  try {
    lock_file = folder.open("lock", O_RDONLY);
    // Whoever removes the log holds this byte; a file system without locks keeps nobody from reading.
    if (!try_share_byte(lock_file.get(), kReaders) && is_locked(lock_file.get(), kReaders))
      fail(GFT_NOT_FOUND, "the disk log in %s is being removed", folder.path.c_str());
    pulse = read_pulse(lock_file);
  } catch (const Fail &why) {
    if (why.code != GFT_NOT_FOUND) throw;
  }
  auto super = newest_super(folder, highest);
  if (!super) super = rebuilt();
  if (super->log == Id{}) fail(GFT_NOT_FOUND, "no disk log in %s; check the path", folder.path.c_str());
  log = super->log;
  follow(std::move(*super), pulse);
}

void Log::Inside::start_threads() {
  SignalsBlocked quiet;
  appender_done = false;
  auto start = [this](auto body) {
    Lock lock(mutex);
    std::thread([self = shared_from_this(), body] {
      try {
        body(*self);
      } catch (...) {
        Fail why = current_failure();
        Lock failing(self->mutex);
        self->refuse(why.code, why.text, true);
        self->appender_done = true;
      }
      Lock ending(self->mutex);
      if (--self->threads_alive == 0 && self->stop) self->lease = nullptr;  // its lock with it
      self->progress.notify_all();
    }).detach();
    ++threads_alive;
  };
  start([](Inside &in) { Appender(in).run(); });
  start([](Inside &in) { Keeper(in).run(); });
}

}  // namespace gft::disk
