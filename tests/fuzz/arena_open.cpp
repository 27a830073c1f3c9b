// Fuzz target: the file header of an arena and the length of the file, under a checksum that fits or not.
// Whatever opens is looked at in every way that needs no writer.
#include "arena_image.h"
#include "look.h"

using namespace fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static ArenaImage image("open");
  static constexpr uint64_t kLongest = 4 << 20;  // larger files open too, but looking at them takes longer than is useful
  image.restore();
  Input input(data, size);
  uint8_t how = input.take<uint8_t>();
  gft::FileHeader header;
  std::memcpy(&header, image.memory, sizeof header);
  if (how & 1) {
    header.slot_bytes = input.take<uint64_t>();
    header.slots = input.take<uint64_t>();
    header.ledger_bytes = input.take<uint64_t>();
    header.file_bytes = input.take<uint64_t>();
  } else {
    uint8_t at = input.take<uint8_t>() % sizeof header;
    auto fresh = input.bytes(std::min<size_t>(input.take<uint8_t>(), sizeof header - at));
    if (!fresh.empty()) std::memcpy(reinterpret_cast<uint8_t *>(&header) + at, fresh.data(), fresh.size());
  }
  uint64_t length = image.geometry.file_bytes;
  if (how & 2) {  // a file as long as these numbers ask for
    try {
      uint64_t needed = gft::Geometry::of(header.slot_bytes, header.slots, header.ledger_bytes).file_bytes;
      if (needed <= kLongest) header.file_bytes = length = needed;
    } catch (const gft::Fail &) {
    }
  } else if (how & 4) {
    length = input.take<uint32_t>() % kLongest;
  }
  if (how & 8) header.crc = gft::crc32c(&header, offsetof(gft::FileHeader, crc));
  std::memcpy(image.memory, &header, sizeof header);
  image.resize(length);
  for (int read_only : {1, 0}) {
    gft_arena *arena = nullptr;
    if (gft_arena_open(image.path.c_str(), read_only, &arena) != GFT_OK) continue;
    look_at_everything(arena);
    gft_arena_free(arena);
  }
  image.resize(image.geometry.file_bytes);
  return 0;
}
