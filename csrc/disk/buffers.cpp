// A counted budget and the holes of one region, first fit.
// Nothing here touches the disk.
#include "buffers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "../support/fail.h"
#include "format.h"

// AddressSanitizer sees one region; telling it what of that is given out makes it see buffers.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define GFT_POISON(at, bytes) __asan_poison_memory_region(at, bytes)
#define GFT_UNPOISON(at, bytes) __asan_unpoison_memory_region(at, bytes)
#else
#define GFT_POISON(at, bytes) (void)0
#define GFT_UNPOISON(at, bytes) (void)0
#endif

namespace gft::disk {
namespace {
constexpr uint64_t kHuge = uint64_t{2} << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kGuard = kPage;  // behind each buffer, never given out
#else
constexpr uint64_t kGuard = 0;
#endif
}  // namespace

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

Buffers::~Buffers() {
  if (!mapped_) return;
  GFT_UNPOISON(region_, budget_);
  munmap(mapped_, budget_ + kHuge);
}

// Address space only; memory comes huge page by huge page as it is first used, and stays.
void Buffers::reserve() {
  reserved_ = true;
  if (budget_ >= kUnlimited) return;
  void *at = mmap(nullptr, budget_ + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return;
  mapped_ = at;
  region_ = reinterpret_cast<uint8_t *>((reinterpret_cast<uintptr_t>(at) + kHuge - 1) / kHuge * kHuge);
  (void)madvise(region_, budget_, MADV_HUGEPAGE);  // without it everything is only slower the first time
  GFT_POISON(region_, budget_);
  holes_.emplace(0, budget_ / kPage * kPage);
}

Buffers::Holes::iterator Buffers::hole_for(uint64_t bytes) {
  return std::find_if(holes_.begin(), holes_.end(), [&](const auto &hole) { return hole.second >= bytes; });
}

Buffer Buffers::take(uint64_t bytes, Clock::time_point deadline) {
  bytes = whole_pages(bytes) + kGuard;
  std::unique_lock lock(mutex_);
  if (!reserved_) reserve();
  auto there_is_room = [&] {
    if (used_ == 0) return true;
    return used_ + bytes <= budget_ && (!region_ || hole_for(bytes) != holes_.end());
  };
  if (!there_is_room() && !room_.wait_until(lock, deadline, there_is_room)) return {};
  // The lowest hole: a log that is used little touches little.
  if (auto hole = hole_for(bytes); hole != holes_.end()) {
    auto [at, size] = *hole;
    if (size > bytes) holes_.emplace_hint(std::next(hole), at + bytes, size - bytes);
    holes_.erase(hole);
    used_ += bytes;
    GFT_UNPOISON(region_ + at, bytes - kGuard);
    return {shared_from_this(), region_ + at, bytes};
  }
  auto *data = static_cast<uint8_t *>(std::aligned_alloc(kPage, bytes));
  if (!data) fail(GFT_INTERNAL, "no memory for %llu bytes of staging; give the disk log less", (unsigned long long)bytes);
  used_ += bytes;
  return {shared_from_this(), data, bytes};
}

void Buffers::put_back(uint8_t *data, uint64_t bytes) noexcept {
  std::lock_guard lock(mutex_);
  used_ -= bytes;
  if (!inside(data)) {
    std::free(data);
  } else {
    GFT_POISON(data, bytes);
    uint64_t from = static_cast<uint64_t>(data - region_);
    auto after = holes_.lower_bound(from);
    if (after != holes_.end() && after->first == from + bytes) {
      bytes += after->second;
      after = holes_.erase(after);
    }
    auto before = after == holes_.begin() ? holes_.end() : std::prev(after);
    if (before != holes_.end() && before->first + before->second == from) {
      before->second += bytes;
    } else {
      try {
        holes_.emplace_hint(after, from, bytes);
      } catch (...) {
        // No memory to remember it: this part of the region is not used again.
      }
    }
  }
  room_.notify_all();
}

}  // namespace gft::disk
