// A counted budget and a list of idle buffers by size.
// Nothing here touches the disk.
#include "buffers.h"

#include <cstdlib>
#include <utility>

#include "../support/fail.h"
#include "format.h"

namespace gft::disk {

Buffer::Buffer(Buffer &&other) noexcept
    : from_(std::move(other.from_)), data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer &Buffer::operator=(Buffer &&other) noexcept {
  std::swap(from_, other.from_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (data_) from_->put_back(data_, bytes_);
}

Buffers::~Buffers() { free_kept(0); }

Buffer Buffers::take(uint64_t bytes, Clock::time_point deadline) {
  bytes = whole_pages(bytes);
  std::unique_lock lock(mutex_);
  auto there_is_room = [&] { return used_ == 0 || used_ + bytes <= budget_; };
  if (!there_is_room() && !room_.wait_until(lock, deadline, there_is_room)) return {};
  auto kept = kept_.lower_bound(bytes);
  if (kept != kept_.end() && kept->first <= bytes + bytes / 4 && (used_ == 0 || used_ + kept->first <= budget_)) {
    Buffer out(shared_from_this(), kept->second, kept->first);
    kept_bytes_ -= kept->first;
    used_ += kept->first;
    kept_.erase(kept);
    return out;
  }
  free_kept(budget_ > used_ + bytes ? budget_ - used_ - bytes : 0);
  auto *data = static_cast<uint8_t *>(std::aligned_alloc(kPage, bytes));
  if (!data) fail(GFT_INTERNAL, "no memory for %llu bytes of staging; give the disk log less", (unsigned long long)bytes);
  used_ += bytes;
  return {shared_from_this(), data, bytes};
}

void Buffers::put_back(uint8_t *data, uint64_t bytes) noexcept {
  std::lock_guard lock(mutex_);
  used_ -= bytes;
  try {
    kept_.emplace(bytes, data);
    kept_bytes_ += bytes;
  } catch (...) {
    std::free(data);
  }
  room_.notify_all();
}

void Buffers::free_kept(uint64_t until) noexcept {
  while (kept_bytes_ > until) {
    auto last = std::prev(kept_.end());
    kept_bytes_ -= last->first;
    std::free(last->second);
    kept_.erase(last);
  }
}

}  // namespace gft::disk
