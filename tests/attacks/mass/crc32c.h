// CRC32C by table, so that faults can make checksums fit; independent of the core on purpose.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace mass {

inline uint32_t crc32c(const uint8_t *data, size_t bytes, uint32_t seed = 0) {
  static const auto table = [] {
    std::array<uint32_t, 256> out;
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0x82f63b78 : 0);
      out[i] = value;
    }
    return out;
  }();
  uint32_t crc = ~seed;
  for (size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
  return ~crc;
}

}  // namespace mass
