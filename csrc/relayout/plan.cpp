// The checks of a plan: offsets, then coverage. Whoever made the plan is not trusted; a wrong one must never reach memory.
// Coverage is counted in a bitmap of the largest unit in which all copies are whole.
#include "plan.h"

#include <algorithm>
#include <numeric>

#include "../support/fail.h"

namespace gft {
namespace {

constexpr uint64_t kMaxPayload = uint64_t{1} << 36;
constexpr size_t kMaxCopies = size_t{1} << 20, kMaxSources = size_t{1} << 16, kMaxPlaces = size_t{1} << 20;
constexpr uint64_t kGap = 4096;

using ull = unsigned long long;

// Last byte + 1 that the copy reaches from `begin`; false when that is no 64-bit number.
bool reach(const StridedCopy &copy, const uint64_t *strides, uint64_t begin, uint64_t &end) {
  if (__builtin_add_overflow(begin, copy.bytes, &end)) return false;
  for (uint32_t d = 0; d < copy.dims; ++d) {
    uint64_t span;
    if (__builtin_mul_overflow(copy.count[d] - 1, strides[d], &span) || __builtin_add_overflow(end, span, &end)) return false;
  }
  return true;
}

template <typename Each>
void for_each_run(const StridedCopy &copy, Each each) {
  uint64_t at[GFT_COPY_DIMS] = {}, to = copy.to;
  for (;;) {
    each(to);
    uint32_t d = copy.dims;
    while (d > 0) {
      to += copy.to_stride[--d];
      if (++at[d] < copy.count[d]) break;
      to -= copy.to_stride[d] * copy.count[d];
      at[d] = 0;
      if (d == 0) return;
    }
    if (copy.dims == 0) return;
  }
}

}  // namespace

RelayoutPlan::RelayoutPlan(std::span<const StridedCopy> copies, std::span<const uint64_t> source_bytes_,
                           uint64_t target_bytes_)
    : source_bytes(source_bytes_.begin(), source_bytes_.end()),
      target_bytes(target_bytes_),
      copies_(copies.begin(), copies.end()),
      ranges_(source_bytes_.size()) {
  bool sizes = target_bytes > 0 && target_bytes <= kMaxPayload && !source_bytes.empty() && source_bytes.size() <= kMaxSources;
  for (uint64_t bytes : source_bytes) sizes = sizes && bytes > 0 && bytes <= kMaxPayload;
  if (!sizes || copies_.empty() || copies_.size() > kMaxCopies)
    fail(GFT_INVALID,
         "a relayout plan of %zu copies from %zu payloads to one of %llu bytes; it needs between 1 and %zu copies and "
         "payloads of 1 to 2^36 bytes; plan it again",
         copies_.size(), source_bytes.size(), (ull)target_bytes, kMaxCopies);
  for (size_t i = 0; i < copies_.size(); ++i) check(copies_[i], i);
  check_coverage();
  collect_ranges();
}

void RelayoutPlan::check(const StridedCopy &copy, size_t number) const {
  auto broken = [&](const char *rule) {
    fail(GFT_INVALID, "copy %zu of a relayout plan (source %llu, from %llu, to %llu, run %llu, %u dimensions): %s; plan it again",
         number, (ull)copy.source, (ull)copy.from, (ull)copy.to, (ull)copy.bytes, copy.dims, rule);
  };
  if (copy.source >= source_bytes.size()) broken("there is no such source payload");
  if (copy.dims > GFT_COPY_DIMS || copy.bytes == 0) broken("it has at most 5 dimensions and runs of at least one byte");
  for (uint32_t d = 0; d < copy.dims; ++d)
    if (copy.count[d] == 0) broken("every dimension has at least one step");
  uint64_t end;
  if (!reach(copy, copy.from_stride, copy.from, end) || end > source_bytes[copy.source]) broken("it reads behind its source");
  if (!reach(copy, copy.to_stride, copy.to, end) || end > target_bytes) broken("it writes behind its target");
}

void RelayoutPlan::check_coverage() const {
  uint64_t unit = target_bytes, total = 0;
  for (const StridedCopy &copy : copies_) {
    unit = std::gcd(std::gcd(unit, copy.to), copy.bytes);
    uint64_t runs = 1;
    for (uint32_t d = 0; d < copy.dims; ++d) {
      if (copy.count[d] > 1) unit = std::gcd(unit, copy.to_stride[d]);
      // Cannot overflow into sense: a copy with more runs than target bytes writes some byte twice.
      if (__builtin_mul_overflow(runs, copy.count[d], &runs)) runs = kMaxPayload;
      runs = std::min(runs, kMaxPayload);
    }
    uint64_t bytes;
    if (runs > target_bytes || __builtin_mul_overflow(runs, copy.bytes, &bytes) || (total += bytes) > target_bytes)
      fail(GFT_INVALID, "a relayout plan writes more than the %llu bytes of its target; plan it again", (ull)target_bytes);
  }
  std::vector<bool> written(target_bytes / unit);
  for (const StridedCopy &copy : copies_)
    for_each_run(copy, [&](uint64_t to) {
      for (uint64_t at = to / unit; at < (to + copy.bytes) / unit; ++at) {
        if (written[at])
          fail(GFT_INVALID, "a relayout plan writes byte %llu of its target twice; plan it again", (ull)(at * unit));
        written[at] = true;
      }
    });
  if (total != target_bytes)
    fail(GFT_INVALID, "a relayout plan writes %llu of the %llu bytes of its target; plan it again", (ull)total,
         (ull)target_bytes);
}

void RelayoutPlan::collect_ranges() {
  for (const StridedCopy &copy : copies_) {
    std::vector<std::pair<uint64_t, uint64_t>> dims;  // narrowest first
    for (uint32_t d = 0; d < copy.dims; ++d) dims.emplace_back(copy.from_stride[d], copy.count[d]);
    std::sort(dims.begin(), dims.end());
    uint64_t length = copy.bytes;
    std::vector<uint64_t> places = {copy.from};
    for (const auto &[step, count] : dims) {
      // What is too finely scattered is read as one piece.
      if (places.size() > kMaxPlaces / count || (places.size() == 1 && step <= length + kGap)) {
        length += step * (count - 1);
        continue;
      }
      std::vector<uint64_t> more;
      more.reserve(places.size() * count);
      for (uint64_t place : places)
        for (uint64_t k = 0; k < count; ++k) more.push_back(place + k * step);
      places = std::move(more);
    }
    for (uint64_t place : places) ranges_[copy.source].push_back({place, length});
  }
  for (auto &ranges : ranges_) {
    std::sort(ranges.begin(), ranges.end(), [](auto &a, auto &b) { return a.begin < b.begin; });
    std::vector<ByteRange> merged;
    for (const ByteRange &range : ranges) {
      uint64_t end = merged.empty() ? 0 : merged.back().begin + merged.back().bytes;
      if (!merged.empty() && range.begin <= end + kGap)
        merged.back().bytes = std::max(end, range.begin + range.bytes) - merged.back().begin;
      else
        merged.push_back(range);
    }
    ranges = std::move(merged);
  }
}

}  // namespace gft
