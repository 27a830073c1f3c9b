// Out: packs pieces of the engine's KV blocks into staging memory, from where one DMA takes them to the arena.
// Plain pointers in, results out; launched by csrc/copy/berth.cpp through the driver, so its name must not be mangled.
#include "pieces.cuh"

extern "C" __global__ void __launch_bounds__(512)
    gft_gather(const gft::PackedPiece *pieces, unsigned int count, unsigned char *staging, unsigned long long staging_bytes,
               gft::KernelResults *results, unsigned int digest) {
  gft::run<true>(pieces, count, staging, staging_bytes, results, digest);
}
