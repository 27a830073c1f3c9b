// The kernels once more, as host functions under the same names: what the twin runs when one is launched.
// Held against kernels/reference.py by the tests, as the CUDA sources are on a GPU.
#include <cstring>

#include "kernel.h"
#include "mix.h"
#include "twin.h"

namespace gft::device {
namespace {

struct Parameters {
  const PackedPiece *pieces;
  uint32_t count;
  uint8_t *staging;
  uint64_t staging_bytes;
  KernelResults *results;
  uint32_t digest;
};

// False when an array does not lie in the device's memory: on a device that would be an illegal address.
bool read(Twin &twin, void **parameters, Parameters &out) {
  auto address = [&](int i) { return *static_cast<Address *>(parameters[i]); };
  out.count = *static_cast<uint32_t *>(parameters[1]);
  out.staging_bytes = *static_cast<uint64_t *>(parameters[3]);
  out.digest = *static_cast<uint32_t *>(parameters[5]);
  out.pieces = reinterpret_cast<PackedPiece *>(twin.resolve(address(0), out.count * sizeof(PackedPiece)));
  out.staging = twin.resolve(address(2), out.staging_bytes);
  out.results = reinterpret_cast<KernelResults *>(twin.resolve(address(4), sizeof(KernelResults)));
  return out.pieces && out.staging && out.results;
}

uint64_t wrong(const PackedPiece &piece, const Parameters &p) {
  if ((piece.address | piece.offset | piece.bytes) % kAlignment) return kErrorMisaligned;
  if (piece.owner >= kMaxOwners) return kErrorOwner;
  return piece.offset > p.staging_bytes || piece.bytes > p.staging_bytes - piece.offset ? kErrorBounds : 0;
}

template <bool kOut>
void run(Twin &twin, void **parameters) {
  Parameters p;
  if (!read(twin, parameters, p)) return;
  for (uint32_t i = 0; i < p.count; ++i) {
    PackedPiece piece;
    std::memcpy(&piece, p.pieces + i, sizeof piece);
    uint64_t error = wrong(piece, p);
    uint8_t *there = twin.resolve(piece.address, piece.bytes);
    p.results->error |= error ? error : there ? 0 : kErrorBounds;
    if (error || !there) continue;
    uint8_t *here = p.staging + piece.offset;
    if (p.digest) p.results->digest[piece.owner] += mix(kOut ? there : here, piece.bytes, piece.word);
    std::memcpy(kOut ? here : there, kOut ? there : here, piece.bytes);
  }
}

}  // namespace

TwinKernel twin_kernel(const char *name) {
  if (std::strcmp(name, kGather) == 0) return run<true>;
  if (std::strcmp(name, kScatter) == 0) return run<false>;
  return nullptr;
}

}  // namespace gft::device
