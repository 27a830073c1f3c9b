// The work of the router mask: a warp per token walks its experts from the best down, takes the first live ones and renormalises.
// Nothing traps: what breaks a rule sets a bit of the error word and leaves -1 and 0 in that token's outputs, never a silent drop.
//
// Compiled by nvcc for the GPU, and by g++ for the tests, which bring `lane`, `warp_*` and `add_*` of their own (GFT_HOST_WARP).
#pragma once

namespace gft {

// Zeroed by the caller. `affected`: tokens whose own top-k has a dead expert; `replaced`: how many such choices there were.
struct RouterResults {
  unsigned long long error, affected, replaced;
};
constexpr unsigned long long kRouterShape = 1, kRouterIndex = 2, kRouterFewLive = 4, kRouterNotANumber = 8;
constexpr unsigned int kSigmoid = 1, kRenormalise = 2;
constexpr unsigned int kMaxTopK = 32, kMaxExperts = 1024;

struct Router {
  const float *logits, *choose;  // [tokens, experts]; `choose` orders the experts (null: the logits do)
  unsigned int tokens, experts, topk, first;  // `first`: number of row 0 in the step, for batches that are cut up
  const int *loss;                            // one number: which of the stacked tables holds
  unsigned int losses;
  const int *table, *counts;  // [losses, experts, width], [losses, experts] of this layer; strides in ints
  unsigned long long table_stride, counts_stride;
  unsigned int width, physical;
  const unsigned char *alive;  // [experts], null: all that have a replica
  unsigned int flags;
  int *logical, *slots;  // [tokens, topk]
  float *weights;        // [tokens, topk]
  RouterResults *results;
};

#ifndef GFT_HOST_WARP
#define GFT_DEVICE __device__ __forceinline__
GFT_DEVICE unsigned int lane() { return threadIdx.x % 32; }
GFT_DEVICE long long warp_max(long long v) {
  for (int lanes = 16; lanes; lanes /= 2) {
    long long other = __shfl_xor_sync(0xffffffffu, v, lanes);
    v = other > v ? other : v;
  }
  return v;
}
GFT_DEVICE float warp_max(float v) {
  for (int lanes = 16; lanes; lanes /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  return v;
}
GFT_DEVICE float warp_sum(float v) {
  for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  return v;
}
GFT_DEVICE unsigned int warp_sum(unsigned int v) { return __reduce_add_sync(0xffffffffu, v); }
GFT_DEVICE void set_bits(unsigned long long *word, unsigned long long bits) { atomicOr(word, bits); }
GFT_DEVICE void add(unsigned long long *word, unsigned long long amount) { atomicAdd(word, amount); }
#endif

// Minus infinity, spelled so that nvcc, NVRTC and g++ all take it without a header.
GFT_DEVICE float lowest() {
  union {
    unsigned int u;
    float f;
  } bits = {0xff800000u};
  return bits.f;
}

// Orders floats as numbers and equal ones by expert, the lower first; -1 is below all.
GFT_DEVICE long long key_of(float value, unsigned int expert) {
  union {
    float f;
    unsigned int u;
  } bits = {value == 0.0f ? 0.0f : value};
  unsigned int ordered = bits.u & 0x80000000u ? ~bits.u : bits.u | 0x80000000u;
  return (static_cast<long long>(ordered) << 20) | (0xfffffu - expert);
}

GFT_DEVICE void refuse(const Router &r, unsigned int token, unsigned long long error) {
  if (lane() == 0 && error) set_bits(&r.results->error, error);
  if (lane() < r.topk) {
    unsigned long long at = static_cast<unsigned long long>(token) * r.topk + lane();
    r.logical[at] = r.slots[at] = -1;
    r.weights[at] = 0.0f;
  }
}

GFT_DEVICE float score(const Router &r, float logit, float top) {
  return r.flags & kSigmoid ? 1.0f / (1.0f + expf(-logit)) : expf(logit - top);
}

// One token by one warp. `kPer`: experts per lane.
template <int kPer>
GFT_DEVICE void route(const Router &r, unsigned int token) {
  const int loss = *r.loss;
  if (loss < 0 || static_cast<unsigned int>(loss) >= r.losses) return refuse(r, token, kRouterIndex);
  const int *table = r.table + loss * r.table_stride, *counts = r.counts + loss * r.counts_stride;
  const float *logits = r.logits + static_cast<unsigned long long>(token) * r.experts;
  const float *choose = r.choose ? r.choose + static_cast<unsigned long long>(token) * r.experts : logits;
  long long keys[kPer];
  unsigned int live = 0, live_bits = 0, wrong = 0;
  float top = lowest();
#pragma unroll
  for (int n = 0; n < kPer; ++n) {
    unsigned int expert = lane() + 32 * n;
    keys[n] = -1;
    if (expert >= r.experts) continue;
    float value = choose[expert], logit = logits[expert];
    wrong |= value != value || logit != logit;
    keys[n] = key_of(value, expert);
    if (counts[expert] < 1 || (r.alive && !r.alive[expert])) continue;
    live_bits |= 1u << n;
    ++live;
    top = logit > top ? logit : top;
  }
  if (warp_sum(wrong)) return refuse(r, token, kRouterNotANumber);
  if (warp_sum(live) < r.topk) return refuse(r, token, kRouterFewLive);
  top = warp_max(top);

  unsigned int got = 0, rank = 0, replaced = 0, mine = 0;
  for (; got < r.topk; ++rank) {
    long long best = -1;
#pragma unroll
    for (int n = 0; n < kPer; ++n) best = keys[n] > best ? keys[n] : best;
    best = warp_max(best);
    unsigned int expert = 0xfffffu - static_cast<unsigned int>(best & 0xfffff), is_live = 0;
#pragma unroll
    for (int n = 0; n < kPer; ++n)
      if (keys[n] == best) {
        keys[n] = -1;
        is_live = (live_bits >> n) & 1;
      }
    if (!warp_sum(is_live)) {
      replaced += rank < r.topk;
      continue;
    }
    if (lane() == got) mine = expert;
    ++got;
  }

  const bool chosen = lane() < r.topk, renormalise = r.flags & kRenormalise, sigmoid = r.flags & kSigmoid;
  float logit = chosen ? logits[mine] : lowest();
  if (renormalise) top = warp_max(logit);
  float weight = chosen ? score(r, logit, top) : 0.0f, total = 1.0f;
  if (renormalise) {
    total = warp_sum(weight);
  } else if (!sigmoid) {
    float share = 0.0f;
#pragma unroll
    for (int n = 0; n < kPer; ++n)
      if ((live_bits >> n) & 1) share += expf(logits[lane() + 32 * n] - top);
    total = warp_sum(share);
  }
  int slot = -1;
  unsigned int bad = 0;
  if (chosen) {
    unsigned int count = static_cast<unsigned int>(counts[mine]);
    bad = count > r.width;
    if (!bad) slot = table[static_cast<unsigned long long>(mine) * r.width + (r.first + token + mine) % count];
    bad |= slot < 0 || static_cast<unsigned int>(slot) >= r.physical;
  }
  if (warp_sum(bad)) return refuse(r, token, kRouterIndex);
  if (chosen) {
    unsigned long long at = static_cast<unsigned long long>(token) * r.topk + lane();
    r.logical[at] = static_cast<int>(mine);
    r.slots[at] = slot;
    r.weights[at] = weight / total;
  }
  if (lane() == 0 && replaced) {
    add(&r.results->affected, 1);
    add(&r.results->replaced, replaced);
  }
}

GFT_DEVICE void route_any(const Router &r, unsigned int token) {
  if (r.topk < 1 || r.topk > kMaxTopK || r.topk > r.experts || r.experts > kMaxExperts || r.width < 1) {
    if (lane() == 0) set_bits(&r.results->error, kRouterShape);
    for (unsigned int i = lane(); i < r.topk; i += 32) {
      unsigned long long at = static_cast<unsigned long long>(token) * r.topk + i;
      r.logical[at] = r.slots[at] = -1;
      r.weights[at] = 0.0f;
    }
    return;
  }
  if (r.experts <= 128) return route<4>(r, token);
  if (r.experts <= 256) return route<8>(r, token);
  if (r.experts <= 512) return route<16>(r, token);
  return route<32>(r, token);
}

}  // namespace gft
