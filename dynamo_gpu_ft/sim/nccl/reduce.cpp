// 16-bit floats are widened to float, and narrowed again behind every addition, to nearest even.
#include "reduce.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace {

float from_bfloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t to_bfloat(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float from_half(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3FF;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | mantissa << 13);
  float value = exponent ? std::ldexp(static_cast<float>(mantissa | 0x400), static_cast<int>(exponent) - 25)
                         : std::ldexp(static_cast<float>(mantissa), -24);
  return sign ? -value : value;
}

uint16_t to_half(float value) {
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  float size = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (size >= 65520.0f) return sign | 0x7C00;
  int exponent = 0;
  std::frexp(size, &exponent);
  exponent = std::max(exponent, -13);  // below this they are subnormal, with one step for all
  // Rounds to nearest even, as the default mode of the machine does; a carry runs into the exponent's bits.
  auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  return static_cast<uint16_t>(sign | (steps + (static_cast<uint32_t>(exponent + 13) << 10)));
}

template <typename T>
T combined(T a, T b, int op) {
  switch (op) {
    case kSum: return static_cast<T>(a + b);
    case kProd: return static_cast<T>(a * b);
    case kMax: return std::max(a, b);
    default: return std::min(a, b);
  }
}

template <typename T>
void plain(void *into, const void *from, size_t count, int op) {
  auto *a = static_cast<T *>(into);
  const auto *b = static_cast<const T *>(from);
  for (size_t i = 0; i < count; i++) a[i] = combined(a[i], b[i], op);
}

template <float (*Widen)(uint16_t), uint16_t (*Narrow)(float)>
void widened(void *into, const void *from, size_t count, int op) {
  auto *a = static_cast<uint16_t *>(into);
  const auto *b = static_cast<const uint16_t *>(from);
  for (size_t i = 0; i < count; i++) a[i] = Narrow(combined(Widen(a[i]), Widen(b[i]), op));
}

}  // namespace

bool reduce_into(void *into, const void *from, size_t count, int type, int op) {
  switch (type) {
    case kInt8: plain<int8_t>(into, from, count, op); return true;
    case kUint8: plain<uint8_t>(into, from, count, op); return true;
    case kInt32: plain<int32_t>(into, from, count, op); return true;
    case kUint32: plain<uint32_t>(into, from, count, op); return true;
    case kInt64: plain<int64_t>(into, from, count, op); return true;
    case kUint64: plain<uint64_t>(into, from, count, op); return true;
    case kFloat: plain<float>(into, from, count, op); return true;
    case kDouble: plain<double>(into, from, count, op); return true;
    case kHalf: widened<from_half, to_half>(into, from, count, op); return true;
    case kBfloat: widened<from_bfloat, to_bfloat>(into, from, count, op); return true;
    default: return false;
  }
}
