// The queue of queue.h: a mutex held for a few instructions, an eventfd that is readable exactly while something waits.
#include "queue.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "../support/fail.h"
#include "../support/fork_guard.h"

namespace gft::watch {

Queue::Queue(size_t capacity, std::function<void(const Record &)> on_record)
    : capacity_(capacity), on_record_(std::move(on_record)), made_in_((guard_forks(), fork_generation())) {
  if (capacity < 1 || capacity > 1'000'000)
    fail(GFT_INVALID, "a queue for %zu records; it must be between 1 and 1000000", capacity);
  event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_ < 0) fail(GFT_IO, "cannot make an eventfd: %s; check the limit on open files (ulimit -n)", strerror(errno));
}

Queue::~Queue() {
  if (event_ >= 0) close(event_);
}

void Queue::push(Record record) noexcept {
  if (fork_generation() != made_in_) return;
  try {
    if (on_record_) on_record_(record);
    std::lock_guard lock(mutex_);
    if (records_.size() >= capacity_) {
      if (!lost_now_) lost_from_ = record.at_ns;
      lost_to_ = std::max(record.at_ns, record.last_ns);
      lost_now_ += record.count;
      lost_ += record.count;
    } else {
      records_.push_back(std::move(record));
    }
    signal();
  } catch (...) {  // no memory: it counts as lost
    std::lock_guard lock(mutex_);
    if (!lost_now_) lost_from_ = now_ns();
    lost_to_ = now_ns();
    ++lost_now_;
    ++lost_;
    signal();
  }
}

std::vector<Record> Queue::take(size_t limit) {
  std::vector<Record> out;
  if (fork_generation() != made_in_) return out;  // somebody may have held the mutex when the parent forked
  std::lock_guard lock(mutex_);
  if (lost_now_) {
    Record mark;
    mark.source = "queue";
    mark.what = "overflow";
    mark.count = lost_now_;
    mark.at_ns = lost_from_;
    mark.last_ns = lost_to_;
    out.push_back(std::move(mark));
    lost_now_ = 0;
  }
  size_t count = limit ? std::min(limit, records_.size()) : records_.size();
  out.reserve(out.size() + count);
  for (size_t i = 0; i < count; ++i) {
    out.push_back(std::move(records_.front()));
    records_.pop_front();
  }
  if (records_.empty()) {
    uint64_t drained;
    (void)!read(event_, &drained, sizeof drained);
  }
  return out;
}

bool Queue::wait(double seconds) const {
  if (fork_generation() != made_in_) return false;
  double bounded = std::isfinite(seconds) ? std::clamp(seconds, 0.0, 3600.0) : 3600.0;
  const int64_t until = now_ns() + static_cast<int64_t>(bounded * 1e9);
  for (;;) {
    int64_t left = std::max<int64_t>(until - now_ns(), 0);
    struct pollfd waiting = {event_, POLLIN, 0};
    int ready = poll(&waiting, 1, static_cast<int>((left + 999'999) / 1'000'000));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

int Queue::descriptor() const noexcept { return fork_generation() == made_in_ ? event_ : -1; }

uint64_t Queue::lost() const noexcept {
  if (fork_generation() != made_in_) return 0;
  std::lock_guard lock(mutex_);
  return lost_;
}

void Queue::signal() noexcept {
  const uint64_t one = 1;
  (void)!write(event_, &one, sizeof one);  // full only after 2^64 - 2 pushes that nobody took
}

}  // namespace gft::watch
