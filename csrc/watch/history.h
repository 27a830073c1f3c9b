// How long steps took: one histogram per class of step, plain words in shared memory with a single writer.
// The writer is the engine's step; the judge in another process asks for the time that all but one step in a thousand kept.
#pragma once

#include <atomic>
#include <cstdint>

namespace gft::watch {

// Steps of one class do similar work, e.g. as many tokens to the next power of two.
constexpr uint32_t kClasses = 24;

class History {
 public:
  static constexpr uint32_t kFine = 16;                   // buckets per doubling: a bucket is at most 1/16 wide
  static constexpr uint32_t kLow = 14, kDoublings = 24;   // 16 us to 275 s; what lies outside counts at the edge
  static constexpr uint32_t kBuckets = kFine * kDoublings;
  static constexpr uint32_t kKeep = 16384;                // more steps than this: all counts are halved

  // By the one writer. Also a step that took too long is learnt: what is usual is for the engine to say.
  void learn(uint32_t kind, int64_t nanoseconds) noexcept;
  // Upper edge of the bucket below which `part` of the steps lie; 0 when nothing was learnt. Any bytes give some answer.
  int64_t quantile(uint32_t kind, double part) const noexcept;
  uint32_t count(uint32_t kind) const noexcept;

 private:
  static uint32_t bucket(int64_t nanoseconds) noexcept;
  static int64_t edge(uint32_t bucket) noexcept;

  std::atomic<uint32_t> total_[kClasses];
  std::atomic<uint32_t> counts_[kClasses][kBuckets];
};

}  // namespace gft::watch
