// Log-linear histograms with forgetting: when a class is full, every count is halved, so that a changed engine is soon known.
// Readers may see a halving half done; a quantile is then off by a bucket or so for a moment.
#include "history.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace gft::watch {

uint32_t History::bucket(int64_t nanoseconds) noexcept {
  uint64_t value = nanoseconds > 0 ? static_cast<uint64_t>(nanoseconds) : 0;
  if (value < (uint64_t{1} << kLow)) return 0;
  auto high = static_cast<uint32_t>(std::bit_width(value) - 1);
  uint32_t fine = static_cast<uint32_t>(value >> (high - 4)) & (kFine - 1);
  return std::min((high - kLow) * kFine + fine, kBuckets - 1);
}

int64_t History::edge(uint32_t bucket) noexcept {
  uint32_t high = bucket / kFine + kLow, fine = bucket % kFine;
  return static_cast<int64_t>((uint64_t{kFine} + fine + 1) << (high - 4));
}

void History::learn(uint32_t kind, int64_t nanoseconds) noexcept {
  kind = std::min(kind, kClasses - 1);
  auto &total = total_[kind];
  if (total.load(std::memory_order_relaxed) >= kKeep) {
    uint32_t left = 0;
    for (auto &count : counts_[kind]) {
      uint32_t half = count.load(std::memory_order_relaxed) / 2;
      count.store(half, std::memory_order_relaxed);
      left += half;
    }
    total.store(left, std::memory_order_relaxed);
  }
  counts_[kind][bucket(nanoseconds)].fetch_add(1, std::memory_order_relaxed);
  total.fetch_add(1, std::memory_order_relaxed);
}

uint32_t History::count(uint32_t kind) const noexcept {
  return total_[std::min(kind, kClasses - 1)].load(std::memory_order_relaxed);
}

int64_t History::quantile(uint32_t kind, double part) const noexcept {
  kind = std::min(kind, kClasses - 1);
  uint64_t all = 0;
  for (const auto &count : counts_[kind]) all += count.load(std::memory_order_relaxed);
  if (!all) return 0;
  auto above = static_cast<uint64_t>(std::floor(static_cast<double>(all) * (1 - part)));
  for (uint32_t i = kBuckets; i-- > 0;) {
    uint64_t here = counts_[kind][i].load(std::memory_order_relaxed);
    if (here > above) return edge(i);
    above -= here;
  }
  return edge(0);
}

}  // namespace gft::watch
