// What the host and the kernels agree on: one packed piece, the results, and the names. kernels/piece.cuh says the same.
// Used by the device copy path and by the twin's kernels.
#pragma once

#include <cstdint>

namespace gft::device {

// `bytes` at `address` in the engine belong at `offset` of the staging buffer; all three are multiples of 16.
// `owner` counts blocks of the batch; `word` is the number of the first 8-byte word inside that block's payload.
struct PackedPiece {
  uint64_t address, offset, bytes, word;
  uint32_t owner, zero;
};
static_assert(sizeof(PackedPiece) == 40);

// What a launch leaves behind, zeroed before it: an error word (0: none), and one digest per owner.
constexpr uint32_t kMaxOwners = 64;
struct KernelResults {
  uint64_t error;
  uint64_t digest[kMaxOwners];
};
constexpr uint64_t kErrorMisaligned = 1, kErrorOwner = 2, kErrorBounds = 4;

constexpr uint64_t kAlignment = 16;
constexpr unsigned kThreads = 512;
constexpr const char *kGather = "gft_gather", *kScatter = "gft_scatter";
// Parameters of both: const PackedPiece *, uint32_t count, uint8_t *staging, uint64_t staging_bytes, KernelResults *, uint32_t digest.

}  // namespace gft::device
