// The device digest, once more for the GPU: must equal csrc/device/mix.h and kernels/reference.py word for word.
// Position-keyed and summed, so that thread blocks add their shares in any order.
#pragma once

namespace gft {

__device__ __forceinline__ unsigned long long mix_word(unsigned long long word, unsigned long long index) {
  unsigned long long z = word + (index + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace gft
