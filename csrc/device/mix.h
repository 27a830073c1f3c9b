// The device digest: 64 bits over position-keyed words, summed, so that many thread blocks can add their share in any order.
// Compares what a kernel saw on the device with what lies in the arena; it seals nothing. kernels/mix.cuh has the same function.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace gft::device {

constexpr uint64_t kMixWord = 8;

// `word` is the little-endian 8-byte word number `index` of a block's payload. The last step is splitmix64's finaliser.
inline uint64_t mix_word(uint64_t word, uint64_t index) {
  uint64_t z = word + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// `bytes` is a multiple of 8; `first` is the number of the first word inside its payload.
inline uint64_t mix(const uint8_t *data, size_t bytes, uint64_t first) {
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes / kMixWord; ++i) {
    uint64_t word;
    std::memcpy(&word, data + i * kMixWord, kMixWord);
    sum += mix_word(word, first + i);
  }
  return sum;
}

}  // namespace gft::device
