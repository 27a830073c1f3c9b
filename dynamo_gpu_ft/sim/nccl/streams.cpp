// One lock for all streams. Never destroyed: threads of communicators may outlive the program's last statement.
#include "streams.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <set>

namespace {

struct Stream {
  uint64_t newest = 0;
  std::set<uint64_t> open;
};

struct Streams {
  std::mutex lock;
  std::condition_variable changed;
  std::map<const void *, Stream> all;
};

Streams &streams() {
  static auto *made = new Streams;
  return *made;
}

}  // namespace

uint64_t take_ticket(const void *stream) {
  std::lock_guard held(streams().lock);
  Stream &own = streams().all[stream];
  own.open.insert(++own.newest);
  return own.newest;
}

void give_ticket_back(const void *stream, uint64_t ticket) {
  {
    std::lock_guard held(streams().lock);
    streams().all[stream].open.erase(ticket);
  }
  streams().changed.notify_all();
}

bool wait_for_turn(const void *stream, uint64_t ticket, const std::atomic<bool> &stop) {
  std::unique_lock held(streams().lock);
  Stream &own = streams().all[stream];
  streams().changed.wait(held, [&] { return stop || own.open.empty() || *own.open.begin() >= ticket; });
  return !stop;
}

void wake_waiting() {
  { std::lock_guard held(streams().lock); }
  streams().changed.notify_all();
}

uint64_t newest_ticket(const void *stream) {
  std::lock_guard held(streams().lock);
  return streams().all[stream].newest;
}

bool all_over(const void *stream, uint64_t upto) {
  std::lock_guard held(streams().lock);
  const std::set<uint64_t> &open = streams().all[stream].open;
  return open.empty() || *open.begin() > upto;
}
