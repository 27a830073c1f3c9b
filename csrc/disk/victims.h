// Which segment to collect next: pure decisions over how much of each is alive, cold and held.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace gft::disk {

struct Candidate {
  uint64_t number = 0;
  uint64_t file_bytes = 0, live_bytes = 0;
  uint64_t warm_bytes = 0;  // live, and used recently or held
  uint64_t held_bytes = 0;
};

// What of the victim is kept, by giving it a new place.
enum class Keep { live, warm, held, nothing };

struct Victim {
  uint64_t number = 0;
  Keep keep = Keep::live;
};

// When room is not short: the segment with the smallest part alive, if that is below `ratio`.
std::optional<Victim> poorest(std::span<const Candidate> all, double ratio);
// When room must be made: what costs least to keep, and keeps at most half of `segment_bytes` so that a pass always wins.
std::optional<Victim> coldest(std::span<const Candidate> all, uint64_t segment_bytes);

}  // namespace gft::disk
