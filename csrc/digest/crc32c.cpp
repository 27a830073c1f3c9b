// CRC32C and the digest built on it: word i of the input feeds stream i mod 3, so that three independent
// multiplier chains run at once; the last partial word is padded with zeros, and the length makes that unambiguous.
#include "crc32c.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gft {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

struct Tables {
  uint32_t at[8][256];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    tables.at[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i)
    for (int k = 1; k < 8; ++k) {
      uint32_t below = tables.at[k - 1][i];
      tables.at[k][i] = (below >> 8) ^ tables.at[0][below & 0xff];
    }
  return tables;
}
constexpr Tables kTables = make_tables();

uint32_t byte_step(uint32_t crc, uint8_t byte) { return (crc >> 8) ^ kTables.at[0][(crc ^ byte) & 0xff]; }

uint32_t word_step(uint32_t crc, uint64_t word) {
  word ^= crc;
  uint32_t out = 0;
  for (int k = 0; k < 8; ++k) out ^= kTables.at[7 - k][(word >> (8 * k)) & 0xff];
  return out;
}

uint64_t load_word(const uint8_t *from) {
  uint64_t word;
  std::memcpy(&word, from, 8);
  return word;
}

uint32_t plain_table(uint32_t crc, const uint8_t *data, size_t bytes) {
  for (; bytes >= 8; data += 8, bytes -= 8) crc = word_step(crc, load_word(data));
  for (; bytes; ++data, --bytes) crc = byte_step(crc, *data);
  return crc;
}

// Feeds whole rounds of three words; returns how many bytes it took.
size_t rounds_table(uint32_t *crc, const uint8_t *data, size_t bytes) {
  size_t taken = 0;
  for (; bytes - taken >= 24; taken += 24)
    for (size_t k = 0; k < 3; ++k) crc[k] = word_step(crc[k], load_word(data + taken + 8 * k));
  return taken;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t plain_sse42(uint32_t seed, const uint8_t *data, size_t bytes) {
  uint64_t crc = seed;
  for (; bytes >= 8; data += 8, bytes -= 8) crc = _mm_crc32_u64(crc, load_word(data));
  uint32_t out = static_cast<uint32_t>(crc);
  for (; bytes; ++data, --bytes) out = _mm_crc32_u8(out, *data);
  return out;
}

__attribute__((target("sse4.2"))) size_t rounds_sse42(uint32_t *crc, const uint8_t *data, size_t bytes) {
  uint64_t a = crc[0], b = crc[1], c = crc[2];
  size_t taken = 0;
  for (; bytes - taken >= 24; taken += 24) {
    a = _mm_crc32_u64(a, load_word(data + taken));
    b = _mm_crc32_u64(b, load_word(data + taken + 8));
    c = _mm_crc32_u64(c, load_word(data + taken + 16));
  }
  crc[0] = static_cast<uint32_t>(a);
  crc[1] = static_cast<uint32_t>(b);
  crc[2] = static_cast<uint32_t>(c);
  return taken;
}

bool has_sse42() {
  static const bool has = (__builtin_cpu_init(), __builtin_cpu_supports("sse4.2"));
  return has;
}
#else
bool has_sse42() { return false; }
uint32_t plain_sse42(uint32_t, const uint8_t *, size_t) { return 0; }
size_t rounds_sse42(uint32_t *, const uint8_t *, size_t) { return 0; }
#endif

struct Streams {
  uint32_t crc[3];
  uint32_t waiting;  // bytes in `rest`
  uint64_t length;
  uint8_t rest[24];
};
static_assert(sizeof(Streams) <= sizeof(DigestState));

Streams &streams(DigestState &state) { return *reinterpret_cast<Streams *>(state.bytes); }

size_t rounds(uint32_t *crc, const uint8_t *data, size_t bytes) {
  return has_sse42() ? rounds_sse42(crc, data, bytes) : rounds_table(crc, data, bytes);
}

void start(DigestState &state) {
  // Three different starts, so that words exchanged between streams do not cancel out.
  streams(state) = Streams{{0xffffffff, 0x9e3779b9, 0x7f4a7c15}, 0, 0, {}};
}

void update(DigestState &state, const void *data, size_t bytes) {
  Streams &s = streams(state);
  auto *from = static_cast<const uint8_t *>(data);
  s.length += bytes;
  if (s.waiting) {
    size_t take = std::min<size_t>(24 - s.waiting, bytes);
    std::memcpy(s.rest + s.waiting, from, take);
    s.waiting += static_cast<uint32_t>(take);
    from += take;
    bytes -= take;
    if (s.waiting < 24) return;
    rounds(s.crc, s.rest, 24);
    s.waiting = 0;
  }
  size_t taken = rounds(s.crc, from, bytes);
  s.waiting = static_cast<uint32_t>(bytes - taken);
  if (s.waiting) std::memcpy(s.rest, from + taken, s.waiting);
}

void finish(const DigestState &state, uint8_t *out) {
  Streams s = *reinterpret_cast<const Streams *>(state.bytes);
  std::memset(s.rest + s.waiting, 0, 24 - s.waiting);
  if (s.waiting) rounds(s.crc, s.rest, 24);
  std::memcpy(out, s.crc, 12);
  uint32_t length = crc32c(&s.length, 8);
  std::memcpy(out + 12, &length, 4);
}

}  // namespace

uint32_t crc32c(const void *data, size_t bytes, uint32_t seed) {
  auto *from = static_cast<const uint8_t *>(data);
  return ~(has_sse42() ? plain_sse42(~seed, from, bytes) : plain_table(~seed, from, bytes));
}

const DigestAlgorithm &crc32c_digest() {
  static const DigestAlgorithm algorithm{"crc32c", has_sse42() ? "sse4.2" : "table", start, update, finish};
  return algorithm;
}

}  // namespace gft
