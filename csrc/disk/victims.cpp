// Smallest number first among equals, so that the answer depends on nothing but the question.
#include "victims.h"

namespace gft::disk {
namespace {

template <typename Cost>
const Candidate *least(std::span<const Candidate> all, Cost cost) {
  const Candidate *best = nullptr;
  for (const Candidate &each : all)
    if (!best || cost(each) < cost(*best)) best = &each;
  return best;
}

}  // namespace

std::optional<Victim> poorest(std::span<const Candidate> all, double ratio) {
  auto part = [](const Candidate &each) {
    return each.file_bytes ? static_cast<double>(each.live_bytes) / static_cast<double>(each.file_bytes) : 0.0;
  };
  const Candidate *best = least(all, part);
  if (!best || part(*best) >= ratio) return std::nullopt;
  return Victim{best->number, best->live_bytes ? Keep::live : Keep::nothing};
}

std::optional<Victim> coldest(std::span<const Candidate> all, uint64_t segment_bytes) {
  uint64_t most = segment_bytes / 2;
  const Candidate *best = least(all, [](const Candidate &each) { return each.warm_bytes; });
  if (!best) return std::nullopt;
  if (best->warm_bytes <= most) return Victim{best->number, Keep::warm};
  best = least(all, [](const Candidate &each) { return each.held_bytes; });
  return Victim{best->number, best->held_bytes <= most ? Keep::held : Keep::nothing};
}

}  // namespace gft::disk
