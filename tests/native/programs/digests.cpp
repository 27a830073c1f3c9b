// The digests against known values, against each other's instruction sets, and under every split of their input.
// The only program that looks behind gft.h: variants that this machine would not choose are reachable only there.
#include "../../../csrc/digest/crc32c.h"
#ifdef GFT_HAVE_XXHASH
#include "../../../csrc/digest/xxh3.h"
#endif
#include "support.h"

using gft::Digest;
using gft::DigestAlgorithm;
using gft::DigestState;

[[maybe_unused]] static std::string hex(const Digest &digest) {
  std::string out;
  char two[3];
  for (uint8_t byte : digest) {
    std::snprintf(two, sizeof two, "%02x", byte);
    out += two;
  }
  return out;
}

static void splits_do_not_matter(const DigestAlgorithm &algorithm, const std::vector<uint8_t> &data, Random &random) {
  Digest whole = algorithm.of(data.data(), data.size());
  for (int round = 0; round < 20; ++round) {
    DigestState state;
    algorithm.start(state);
    for (size_t at = 0; at < data.size();) {
      size_t part = std::min<size_t>(1 + random.below(random.below(2) ? 5000 : 40), data.size() - at);
      algorithm.update(state, data.data() + at, part);
      at += part;
    }
    Digest split;
    algorithm.finish(state, split.data());
    CHECK(split == whole);
  }
}

int main() {
  Random random{42};
  CHECK(gft::crc32c("123456789", 9) == 0xe3069283);
  CHECK(gft::crc32c("6789", 4, gft::crc32c("12345", 5)) == 0xe3069283);
  std::vector<const DigestAlgorithm *> all{&gft::crc32c_digest()};
#ifdef GFT_HAVE_XXHASH
  CHECK(hex(gft::xxh3_base().of("", 0)) == "99aa06d3014798d86001c324468d497f");
  all.push_back(&gft::xxh3_base());
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) all.push_back(&gft::xxh3_avx2());
  if (__builtin_cpu_supports("avx512f")) all.push_back(&gft::xxh3_avx512());
#endif
#endif
  for (size_t size : {0, 1, 7, 8, 16, 23, 24, 25, 128, 129, 240, 241, 1000, 4096, 70000}) {
    std::vector<uint8_t> data(size);
    for (uint8_t &byte : data) byte = static_cast<uint8_t>(random());
    for (const DigestAlgorithm *algorithm : all) {
      splits_do_not_matter(*algorithm, data, random);
      Digest before = algorithm->of(data.data(), size);
      if (std::strcmp(algorithm->name, "xxh3_128") == 0) CHECK(before == all[1]->of(data.data(), size));
      for (int flips = 0; flips < 50 && size; ++flips) {
        size_t at = random.below(size);
        uint8_t bit = static_cast<uint8_t>(1u << random.below(8));
        data[at] ^= bit;
        CHECK(algorithm->of(data.data(), size) != before);
        data[at] ^= bit;
      }
      std::vector<uint8_t> longer(data);
      longer.push_back(0);
      CHECK(algorithm->of(longer.data(), longer.size()) != before);
    }
  }
  std::printf("digests: %zu variants agree, xxHash %s\n", all.size(), gft_xxhash_version());
}
