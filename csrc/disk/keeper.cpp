// The keeper's order of urgency: finish what the appender left, have a segment ready, collect, summarise, compress.
// Every removal is first made durable in the superblock and then checked against the fence.
#include "keeper.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace gft::disk {
namespace {
constexpr auto kNap = std::chrono::milliseconds(50);
}

void Keeper::run() {
  while (true) {
    bool did = false;
    try {
      did = one_chore();
    } catch (const Fail &why) {
      if (why.code == GFT_INTERNAL) throw;
      trouble(why);
    }
    Log::Inside::Lock lock(in_.mutex);
    if (in_.fenced || in_.refusal.for_good) in_.left.clear();
    if (in_.stop && in_.appender_done && in_.left.empty()) break;
    if (!did) in_.chores.wait_for(lock, kNap);
  }
  try {
    end();
  } catch (const Fail &) {
    // The next opening finds an empty segment more.
  }
}

bool Keeper::one_chore() {
  bool refused, wants_spare, ended, waits;
  {
    Log::Inside::Lock lock(in_.mutex);
    ended = in_.fenced || in_.refusal.for_good;
    waits = in_.spare_trouble.status && Clock::now() < in_.spare_trouble.retry;
    wants_spare = !in_.spare && !in_.appender_done && !waits;
    if (in_.refusal.status && !ended && in_.spare && Clock::now() >= in_.refusal.retry) {
      in_.refusal.status = GFT_OK;
      in_.work.notify_all();
    }
    refused = in_.refusal.status != GFT_OK;
  }
  if (ended) return false;
  if (finish_left()) return true;
  if (wants_spare) return make_spare();
  {
    Log::Inside::Lock lock(in_.mutex);
    if (refused || in_.stop) return false;
  }
  return collect(false) || summarise() || compress();
}

void Keeper::trouble(const Fail &cause) {
  Fail why = cause;
  // The successor of a fenced writer removes files; what fails because of that has this reason and no other.
  if (in_.lease->fenced())
    why = {GFT_FENCED, "another process took over the disk log " + in_.folder.path + "; this one stops writing to it"};
  else if (why.code != GFT_NO_SPACE && why.code != GFT_READ_ONLY && why.code != GFT_FENCED)
    why.code = GFT_IO;
  Log::Inside::Lock lock(in_.mutex);
  auto &now = in_.spare_trouble;
  now.pause = std::clamp(now.pause * 2, std::chrono::milliseconds(250), std::chrono::milliseconds(60'000));
  now.retry = Clock::now() + now.pause;
  now.status = why.code;
  now.text = why.text;
  now.for_good = why.code != GFT_NO_SPACE;
  // Records may be waiting for the segment that cannot be made; without any, what is open is used up first.
  in_.work.notify_all();
}

bool Keeper::make_spare() {
  uint64_t bytes = in_.options.segment_bytes, used;
  bool short_of_room;
  {
    Log::Inside::Lock lock(in_.mutex);
    used = in_.disk_bytes();
    short_of_room = in_.spare_trouble.status == GFT_NO_SPACE;
  }
  // One segment more than needed, for what moves while room is made.
  if (in_.options.cap_bytes && used + 2 * bytes > in_.options.cap_bytes) {
    if (collect(true)) return true;
    Log::Inside::Lock lock(in_.mutex);
    if (!in_.left.empty()) return true;
    // Beside the one being written: full ones that a slow disk has not made durable yet. They can be collected soon.
    auto grows = [](const auto &each) { return each.second.limit == 0; };
    if (std::count_if(in_.segments.begin(), in_.segments.end(), grows) > 1) return false;
    lock.unlock();
    fail(GFT_NO_SPACE, "the disk log %s uses %llu bytes of its cap of %llu and nothing can be collected; raise the cap",
         in_.folder.path.c_str(), (unsigned long long)used, (unsigned long long)in_.options.cap_bytes);
  }
  // A full file system: the coldest go, but once, and no more than a segment's room. Where that does not help, somebody else takes
  // what we give up; and what refuses us while there is room (a quota, a limit) would not take it for an answer.
  while (short_of_room && !gave_up_ && in_.folder.free_bytes() < bytes && collect(true)) {
    Log::Inside::Lock lock(in_.mutex);
    gave_up_ = in_.disk_bytes() + bytes <= used;
  }
  gave_up_ = gave_up_ || short_of_room;
  add_segment();
  gave_up_ = false;
  return true;
}

void Keeper::add_segment() {
  uint64_t bytes = in_.options.segment_bytes;
  uint64_t number = in_.lease->term() << 32 | next_number_++;
  SegmentRef made = make_segment(in_.folder, in_.log, number, bytes, *in_.digest, in_.options.direct);
  try {
    write_super([&](Super &super) { super.segments.push_back({number, 0, 0}); });
  } catch (const Fail &) {
    in_.folder.remove(segment_name(number));
    throw;
  }
  in_.files.add(made);
  Log::Inside::Lock lock(in_.mutex);
  in_.segments[number].file_bytes = bytes;
  in_.spare = std::move(made);
  if (in_.spare_trouble.status && !in_.refusal.for_good) in_.refusal.status = GFT_OK;
  in_.spare_trouble = {};
  in_.work.notify_all();
}

// While this thread waits for records to get new places, the appender may need a segment for them.
void Keeper::serve_a_move() {
  {
    Log::Inside::Lock lock(in_.mutex);
    if (in_.spare || in_.appender_done || in_.refusal.status || in_.spare_trouble.status) return;
    if (in_.options.cap_bytes && in_.disk_bytes() + in_.options.segment_bytes > in_.options.cap_bytes) {
      in_.cancel_moves = true;  // appends used up the room for moving: what should have been kept is forgotten instead
      in_.work.notify_all();
      return;
    }
  }
  try {
    add_segment();
  } catch (const Fail &why) {
    if (why.code == GFT_INTERNAL) throw;
    trouble(why);
  }
}

void Keeper::write_super(const std::function<void(Super &)> &change) {
  Super next;
  {
    Log::Inside::Lock lock(in_.mutex);
    next = in_.super();
  }
  change(next);
  in_.lease->write(std::move(next));
  Log::Inside::Lock lock(in_.mutex);
  in_.pulse.generation = in_.lease->generation();
  in_.lease->beat(in_.pulse);
}

void Keeper::write_summary(uint64_t number, uint64_t limit) {
  Summary summary;
  summary.limit = limit;
  summary.digest_name = in_.digest->name;
  {
    Log::Inside::Lock lock(in_.mutex);
    for (const Id &name : in_.segments[number].named) summary.namespaces.push_back(in_.namespaces.at(name));
    summary.entries = in_.index.entries(number);
    in_.segments[number].summarised = true;  // or not worth another attempt: it is only a shortcut
  }
  std::string name = summary_name(number), fresh = name + ".new";
  try {
    if (in_.files.get(in_.log, number)->digest != in_.digest) return;
    auto bytes = build_summary(in_.log, number, summary);
    File file = in_.folder.open(fresh, O_RDWR | O_CREAT | O_TRUNC);
    write_at(file, in_.folder.path_of(fresh), bytes.data(), bytes.size(), 0);
    sync_data(file, in_.folder.path_of(fresh));
    if (rename(in_.folder.path_of(fresh).c_str(), in_.folder.path_of(name).c_str()) != 0) in_.folder.remove(fresh);
  } catch (const Fail &why) {
    if (why.code == GFT_INTERNAL) throw;
    in_.folder.remove(fresh);
  }
}

bool Keeper::finish_left() {
  uint64_t number, limit;
  {
    Log::Inside::Lock lock(in_.mutex);
    if (in_.left.empty()) return false;
    std::tie(number, limit) = in_.left.front();
  }
  if (limit <= kPage) {
    remove(number);
  } else {
    write_summary(number, limit);
    write_super([&](Super &super) {
      for (SuperEntry &entry : super.segments)
        if (entry.segment == number) entry.limit = limit;
    });
    uint64_t bytes;
    {
      File file = in_.folder.open(segment_name(number), O_RDWR);
      (void)!ftruncate(file.get(), static_cast<off_t>(limit));  // else the room stays taken
      bytes = file.size();
    }
    Log::Inside::Lock lock(in_.mutex);
    in_.segments[number].limit = limit;
    in_.segments[number].file_bytes = bytes;
  }
  Log::Inside::Lock lock(in_.mutex);
  in_.left.erase(in_.left.begin());
  return true;
}

bool Keeper::summarise() {
  uint64_t number = 0, limit = 0;
  {
    Log::Inside::Lock lock(in_.mutex);
    for (const auto &[each, state] : in_.segments)
      if (state.limit && !state.summarised) {
        number = each;
        limit = state.limit;
        break;
      }
  }
  if (number) write_summary(number, limit);
  return number != 0;
}

void Keeper::remove(uint64_t number) {
  write_super([&](Super &super) {
    std::erase_if(super.segments, [&](const SuperEntry &entry) { return entry.segment == number; });
  });
  if (in_.lease->fenced())
    fail(GFT_FENCED, "another process took over the disk log %s; this one removes nothing there", in_.folder.path.c_str());
  {
    Log::Inside::Lock lock(in_.mutex);
    in_.index.remove_segment(number);
    in_.segments.erase(number);
    ++in_.counts.collected;
  }
  in_.files.forget(number);
  in_.folder.remove(summary_name(number));
  in_.folder.remove(segment_name(number));
}

void Keeper::end() {
  SegmentRef spare;
  {
    Log::Inside::Lock lock(in_.mutex);
    spare = std::move(in_.spare);
    in_.spare = nullptr;
    if (in_.fenced || in_.refusal.for_good) return;
  }
  if (spare) remove(spare->number);
  while (summarise()) {
  }
}

bool Keeper::idle() const {
  Log::Inside::Lock lock(in_.mutex);
  return Clock::now() >= in_.last_append + std::chrono::milliseconds(in_.options.idle_ms) && !in_.pending;
}

}  // namespace gft::disk
