// Merge what is adjacent on both sides, cut at registrations, then decide for each stretch of the arena as a whole.
// A stretch is what one DMA from staging can fill: pieces that follow each other in the arena.
#include "plan.h"

#include <algorithm>

#include "../device/kernel.h"

namespace gft {
namespace {

constexpr uint64_t kAlign = device::kAlignment;

std::vector<Fragment> merged(std::vector<Fragment> all) {
  std::sort(all.begin(), all.end(), [](const Fragment &a, const Fragment &b) { return a.host < b.host; });
  std::vector<Fragment> out;
  for (const Fragment &next : all) {
    if (next.bytes == 0) continue;
    if (!out.empty()) {
      Fragment &last = out.back();
      // Owners stay apart: the device digest counts per block.
      if (last.owner == next.owner && last.host + last.bytes == next.host && last.device + last.bytes == next.device &&
          last.position + last.bytes == next.position) {
        last.bytes += next.bytes;
        continue;
      }
    }
    out.push_back(next);
  }
  return out;
}

// Pieces of at most `limit` bytes, none across the end of a registration.
std::vector<Fragment> cut(const std::vector<Fragment> &all, const PlanRules &rules, uint64_t limit) {
  std::vector<Fragment> out;
  for (Fragment rest : all) {
    while (rest.bytes) {
      uint64_t take = std::min(rest.bytes, limit);
      if (rules.host_chunk && rest.host >= rules.host_base)
        take = std::min(take, rules.host_chunk - (rest.host - rules.host_base) % rules.host_chunk);
      Fragment piece = rest;
      piece.bytes = take;
      out.push_back(piece);
      rest.device += take, rest.host += take, rest.position += take, rest.bytes -= take;
    }
  }
  return out;
}

bool aligned(const Fragment &f) { return (f.device | f.host | f.bytes | f.position) % kAlign == 0; }

uint64_t pack_below(const PlanRules &rules, uint64_t count) {
  uint64_t below = 0;
  for (const Threshold &row : rules.pack)
    if (count >= row.count) below = row.below;
  return below;
}

class Packer {
 public:
  Packer(Plan &plan, const PlanRules &rules) : plan_(plan), rules_(rules) {}

  void add(const Fragment &f) {
    if (plan_.rounds.empty() || used_ + f.bytes > rules_.staging_bytes) {
      plan_.rounds.emplace_back();
      used_ = 0;
    }
    Round &round = plan_.rounds.back();
    round.pieces.push_back({f.device, used_, f.bytes, f.position, f.owner});
    bool joins = !round.runs.empty() && round.runs.back().host + round.runs.back().bytes == f.host && !ends_registration(f.host);
    if (joins)
      round.runs.back().bytes += f.bytes;
    else
      round.runs.push_back({used_, f.host, f.bytes});
    used_ += f.bytes;
  }

 private:
  bool ends_registration(uint64_t host) const {
    return rules_.host_chunk && host >= rules_.host_base && (host - rules_.host_base) % rules_.host_chunk == 0;
  }

  Plan &plan_;
  const PlanRules &rules_;
  uint64_t used_ = 0;
};

void add_direct(Plan &plan, const Fragment &f, const PlanRules &rules) {
  if (!plan.direct.empty()) {
    // Blocks that lie side by side on both sides go as one.
    Direct &last = plan.direct.back();
    bool cut_here = rules.host_chunk && f.host >= rules.host_base && (f.host - rules.host_base) % rules.host_chunk == 0;
    if (!cut_here && last.host + last.bytes == f.host && last.device + last.bytes == f.device) {
      last.bytes += f.bytes;
      return;
    }
  }
  plan.direct.push_back({f.device, f.host, f.bytes});
}

}  // namespace

Plan make_plan(std::vector<Fragment> fragments, const PlanRules &rules) {
  Plan plan;
  std::vector<Fragment> all = merged(std::move(fragments));
  bool can_pack = rules.kernels && rules.staging_bytes >= kAlign && rules.max_pieces > 0;
  uint64_t limit = can_pack ? rules.staging_bytes / kAlign * kAlign : UINT64_MAX;
  // A packed piece must fit staging; direct copies are joined again below.
  std::vector<Fragment> pieces = cut(all, rules, limit);
  uint64_t below = rules.pack_all ? UINT64_MAX : pack_below(rules, all.size()), packed = 0;
  Packer packer(plan, rules);
  for (size_t from = 0, to; from < pieces.size(); from = to) {
    uint64_t bytes = 0;
    bool fits = can_pack;
    for (to = from; to < pieces.size(); ++to) {
      if (to > from && pieces[to - 1].host + pieces[to - 1].bytes != pieces[to].host) break;
      bytes += pieces[to].bytes;
      fits = fits && aligned(pieces[to]);
    }
    bool pack = fits && bytes / (to - from) < below && packed + (to - from) <= rules.max_pieces;
    if (pack) packed += to - from;
    for (size_t i = from; i < to; ++i) pack ? packer.add(pieces[i]) : add_direct(plan, pieces[i], rules);
  }
  return plan;
}

}  // namespace gft
