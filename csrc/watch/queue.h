// The one way out of the native watchers: a bounded queue of records, with an eventfd for whoever waits and a callback for C++.
// Nothing is lost silently: what does not fit is counted and told by an "overflow" record, which always fits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "record.h"

namespace gft::watch {

class Queue {
 public:
  // `on_record` runs on the source's thread, before the record is queued; it must be quick and must not throw.
  explicit Queue(size_t capacity, std::function<void(const Record &)> on_record = nullptr);
  ~Queue();
  Queue(const Queue &) = delete;
  Queue &operator=(const Queue &) = delete;

  // Never blocks for a reader. A full queue drops `record` and remembers when that began.
  void push(Record record) noexcept;
  // Up to `limit` records, oldest first (0: all). With records lost before them, the first is the "overflow" record:
  // source "queue", count = how many were lost, at_ns and last_ns = between when and when. Never blocks.
  std::vector<Record> take(size_t limit = 0);
  // Waits until there is something to take; false after `seconds`, and in a forked child, where nobody pushes.
  bool wait(double seconds) const;
  // Readable while there is something to take. Owned by the queue; -1 in a forked child.
  int descriptor() const noexcept;
  uint64_t lost() const noexcept;

 private:
  void signal() noexcept;

  const size_t capacity_;
  const std::function<void(const Record &)> on_record_;
  const uint64_t made_in_;
  int event_ = -1;
  mutable std::mutex mutex_;
  std::deque<Record> records_;
  uint64_t lost_ = 0, lost_now_ = 0;
  int64_t lost_from_ = 0, lost_to_ = 0;
};

}  // namespace gft::watch
