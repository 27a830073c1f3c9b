// From router logits to physical slots while experts may be gone: one warp per token, launched with whole warps on any stream.
// Plain pointers in, results out; every table is data, so a captured graph that holds this launch stays valid when they change.
#include "router_mask.cuh"

extern "C" __global__ void __launch_bounds__(256)
    gft_router_mask(const float *logits, const float *choose, unsigned int tokens, unsigned int experts, unsigned int topk,
                    unsigned int first, const int *loss, unsigned int losses, const int *table, const int *counts,
                    unsigned long long table_stride, unsigned long long counts_stride, unsigned int width, unsigned int physical,
                    const unsigned char *alive, unsigned int flags, int *logical, int *slots, float *weights,
                    gft::RouterResults *results) {
  const gft::Router router = {logits, choose,        tokens,        experts, topk,     first, loss,  losses,  table, counts,
                              table_stride, counts_stride, width,   physical, alive, flags, logical, slots, weights, results};
  const unsigned int warps = gridDim.x * (blockDim.x / 32);
  for (unsigned int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; token < tokens; token += warps)
    gft::route_any(router, token);
}
