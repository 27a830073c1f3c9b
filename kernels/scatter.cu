// Back: hands pieces that one DMA has brought into staging memory out to the engine's KV blocks.
// The mirror of gather.cu; the digest is of what was read from staging, which is what the engine gets.
#include "pieces.cuh"

extern "C" __global__ void __launch_bounds__(512)
    gft_scatter(const gft::PackedPiece *pieces, unsigned int count, unsigned char *staging, unsigned long long staging_bytes,
                gft::KernelResults *results, unsigned int digest) {
  gft::run<false>(pieces, count, staging, staging_bytes, results, digest);
}
