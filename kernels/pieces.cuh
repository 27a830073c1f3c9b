// The work of both kernels: walk a list of pieces, copy each between its place and the staging buffer, digest on the way.
// Few thread blocks do it all, so that the engine keeps the rest of the device; nothing traps, a bad piece sets the error word.
//
// The structures are those of csrc/device/kernel.h.
#pragma once

#include "mix.cuh"

namespace gft {

struct PackedPiece {
  unsigned long long address, offset, bytes, word;
  unsigned int owner, zero;
};

constexpr unsigned int kMaxOwners = 64;
struct KernelResults {
  unsigned long long error;
  unsigned long long digest[kMaxOwners];
};
constexpr unsigned long long kErrorMisaligned = 1, kErrorOwner = 2, kErrorBounds = 4;

__device__ __forceinline__ unsigned long long wrong(const PackedPiece &piece, unsigned long long staging_bytes) {
  if ((piece.address | piece.offset | piece.bytes) % 16) return kErrorMisaligned;
  if (piece.owner >= kMaxOwners) return kErrorOwner;
  return piece.offset > staging_bytes || piece.bytes > staging_bytes - piece.offset ? kErrorBounds : 0;
}

__device__ __forceinline__ unsigned long long mix_pair(const uint4 &v, unsigned long long index) {
  unsigned long long low = (static_cast<unsigned long long>(v.y) << 32) | v.x;
  unsigned long long high = (static_cast<unsigned long long>(v.w) << 32) | v.z;
  return mix_word(low, index) + mix_word(high, index + 1);
}

// Adds the sum over the warp to `*to`. All lanes take part.
__device__ __forceinline__ void add_share(unsigned long long share, unsigned long long *to) {
  for (int lanes = 16; lanes; lanes /= 2) share += __shfl_down_sync(0xffffffffu, share, lanes);
  if (threadIdx.x % 32 == 0) atomicAdd(to, share);
}

constexpr int kUnrolled = 8;  // 16-byte loads under way per lane: a piece of 4 KiB costs a warp one memory latency

// Each warp takes whole pieces, so that small ones keep as many loads under way as large ones do. `kGather`: engine to
// staging, else staging to engine. Launched with whole warps.
template <bool kGather>
__device__ void run(const PackedPiece *pieces, unsigned int count, unsigned char *staging, unsigned long long staging_bytes,
                    KernelResults *results, unsigned int digest) {
  const unsigned int lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
  for (unsigned int i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps) {
    const PackedPiece piece = pieces[i];
    if (unsigned long long error = wrong(piece, staging_bytes)) {
      if (lane == 0) atomicOr(&results->error, error);
      continue;
    }
    auto *there = reinterpret_cast<uint4 *>(piece.address);
    auto *here = reinterpret_cast<uint4 *>(staging + piece.offset);
    const uint4 *from = kGather ? there : here;
    uint4 *to = kGather ? here : there;
    unsigned long long pairs = piece.bytes / 16, share = 0;
    for (unsigned long long start = lane; start < pairs; start += kUnrolled * 32) {
      uint4 held[kUnrolled];
#pragma unroll
      for (int n = 0; n < kUnrolled; ++n)
        if (start + n * 32 < pairs) held[n] = __ldcs(from + start + n * 32);
#pragma unroll
      for (int n = 0; n < kUnrolled; ++n) {
        unsigned long long place = start + n * 32;
        if (place >= pairs) continue;
        to[place] = held[n];
        if (digest) share += mix_pair(held[n], piece.word + 2 * place);
      }
    }
    if (digest) {
      __syncwarp();
      add_share(share, &results->digest[piece.owner]);
    }
  }
}

}  // namespace gft
