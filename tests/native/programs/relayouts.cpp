// Conversions against a byte by byte reference: transposed planes and rows with gaps of every shape, at any address.
// Buffers end where the plan says, so that a sanitizer sees the first byte read or written behind them.
#include "../../../csrc/gft_relayout.h"

#include <algorithm>

#include "support.h"

static int planes = 0, rows = 0, large = 0;

// Exactly `bytes`, beginning `shift` bytes behind a cache line.
struct Buffer {
  void *memory = nullptr;
  uint8_t *at;

  Buffer(size_t bytes, size_t shift) {
    CHECK(posix_memalign(&memory, 64, shift + bytes) == 0);
    at = static_cast<uint8_t *>(memory) + shift;
  }
  ~Buffer() { std::free(memory); }
};

static void add(gft_strided_copy &copy, uint64_t count, uint64_t from_stride, uint64_t to_stride) {
  copy.count[copy.dims] = count;
  copy.from_stride[copy.dims] = from_stride;
  copy.to_stride[copy.dims++] = to_stride;
}

static void reference(const gft_strided_copy &copy, uint32_t dim, const uint8_t *from, uint8_t *to) {
  if (dim >= copy.dims || dim >= GFT_COPY_DIMS) {
    for (uint64_t i = 0; i < copy.bytes; ++i) to[i] = from[i];
    return;
  }
  for (uint64_t i = 0; i < copy.count[dim]; ++i)
    reference(copy, dim + 1, from + i * copy.from_stride[dim], to + i * copy.to_stride[dim]);
}

static uint64_t reach(const gft_strided_copy &copy, const uint64_t *strides, uint64_t begin) {
  uint64_t end = begin + copy.bytes;
  for (uint32_t d = 0; d < copy.dims; ++d) end += (copy.count[d] - 1) * strides[d];
  return end;
}

// `layers` times a plane of rows x columns elements, some with the plane itself beside it, untransposed, as K and V are.
static std::vector<gft_strided_copy> some_planes(Random &random) {
  uint64_t element = uint64_t{1} << random.below(5), side = random.below(8) ? 40 : 200;
  uint64_t high = 1 + random.below(side), wide = 1 + random.below(side), layers = 1 + random.below(4);
  uint64_t beside = random.below(2), plane = high * wide * element, stride = wide * element * (1 + beside);
  stride += random.below(2) ? 0 : random.below(100);
  uint64_t layer = stride * high + random.below(100);
  gft_strided_copy turned{}, straight{};
  turned.bytes = element;
  add(turned, layers, layer, plane * (1 + beside));
  add(turned, wide, element, high * element);
  add(turned, high, stride, element);
  ++planes;
  if (!beside) return {turned};
  straight.bytes = wide * element;
  straight.from = wide * element;
  straight.to = plane;
  add(straight, layers, layer, plane * 2);
  add(straight, high, stride, wide * element);
  return {turned, straight};
}

// Runs that lie apart in the source; whole lines more often than not, and often more than what stays in the caches.
static std::vector<gft_strided_copy> some_rows(Random &random) {
  bool lines = random.below(4) != 0, big = random.below(6) == 0;
  uint64_t unit = lines ? 64 : 1, run = unit * (1 + random.below(random.below(3) ? 8 : 80));
  uint64_t count = 1 + random.below(40) + (big ? (300 << 10) / run : 0);
  gft_strided_copy copy{};
  copy.bytes = run;
  copy.from = random.below(70);
  add(copy, count, run + unit * random.below(2 * run / unit + 2), run);
  large += count * run >= 256 << 10;
  ++rows;
  return {copy};
}

int main(int argc, char **argv) {
  int cases = argc > 1 ? std::atoi(argv[1]) : 3000;
  Random random{argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1};
  std::printf("relayouts: seed %llu\n", static_cast<unsigned long long>(random.state));
  for (int i = 0; i < cases; ++i) {
    std::vector<gft_strided_copy> copies = random.below(2) ? some_planes(random) : some_rows(random);
    uint64_t source_bytes = 0, target_bytes = 0;
    for (const gft_strided_copy &copy : copies) {
      source_bytes = std::max(source_bytes, reach(copy, copy.from_stride, copy.from));
      target_bytes = std::max(target_bytes, reach(copy, copy.to_stride, copy.to));
    }
    Buffer source(source_bytes, random.below(64)), made(target_bytes, random.below(3) ? 0 : random.below(64));
    for (uint64_t at = 0; at < source_bytes; ++at) source.at[at] = static_cast<uint8_t>(random());
    std::vector<uint8_t> wanted(target_bytes);
    for (const gft_strided_copy &copy : copies) reference(copy, 0, source.at + copy.from, wanted.data() + copy.to);
    gft_relayout *relayout = nullptr;
    CHECK(gft_relayout_create(copies.data(), copies.size(), &source_bytes, 1, target_bytes, &relayout) == GFT_OK);
    const uint8_t *from = source.at;
    CHECK(gft_relayout_run(relayout, &from, made.at) == GFT_OK);
    CHECK(std::memcmp(made.at, wanted.data(), target_bytes) == 0);
    gft_relayout_free(relayout);
  }
  CHECK(planes > cases / 4 && rows > cases / 4 && large > cases / 50);
  std::printf("relayouts: ok, %d cases\n", cases);
}
