// Fuzz target: going to work on an arena that somebody prepared: epochs, lanes, room, index insertions, marks, namespaces.
// Each input gets a process's first look at the file: nothing is remembered from one input to the next.
#include "arena_image.h"
#include "look.h"

using namespace fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static ArenaImage image("write");
  image.restore();
  Input input(data, size);
  uint8_t how = input.take<uint8_t>();
  image.patch(input);
  gft_arena *arena = nullptr;
  if (gft_arena_open(image.path.c_str(), 0, &arena) != GFT_OK) return 0;
  const auto *mine = reinterpret_cast<const uint8_t *>(how & 1 ? "fedcba9876543210" : kToken);
  uint64_t epoch = 0;
  (void)gft_arena_begin_epoch(arena, mine, how >> 1 & 1, 0, &epoch);
  uint32_t index = 0;
  (void)gft_arena_add_namespace(arena, bytes_of(how & 4 ? "model B" : "model C"), &index);
  gft_writer *writer = nullptr;
  (void)gft_arena_set_quota(arena, how >> 2 & 1, how % 5);
  (void)gft_arena_set_caps(arena, how * 4, how * 3);
  if (gft_arena_attach(arena, how >> 3 & 1, mine, how & 16 ? index : 0, how >> 5 & 1, &writer) == GFT_OK) {
    std::string parent;
    for (uint64_t i = 0; i < kSlots + 2; ++i) {  // more than there is room for
      std::string hash = how & 64 ? name(i) : "fresh " + std::to_string(i);
      gft_claim *claim = nullptr;
      gft_status status = gft_writer_claim(writer, bytes_of(hash), i ? bytes_of(parent) : no_parent(), i, &claim);
      if (status == GFT_OK) {
        uint64_t slot, address;
        gft_claim_info(claim, &slot, &address);
        CHECK(slot < kSlots);
        fill_payload(hash, reinterpret_cast<uint8_t *>(address), kSlotBytes);
        (void)(i == 6 ? gft_claim_abandon(claim) : gft_claim_seal(claim));
        gft_claim_free(claim);
      }
      if (status != GFT_OK && status != GFT_PRESENT) break;
      gft_bytes mark = bytes_of(hash);
      (void)gft_writer_hold(writer, &mark, 1);
      if (how & 128) (void)gft_writer_release(writer, &mark, 1);
      (void)gft_writer_touch(writer, &mark, 1);
      uint64_t pinned = 0;
      (void)gft_writer_pin(writer, &mark, 1, i % 3 ? 0xffffffff : 0, &pinned);
      CHECK(pinned <= kSlots);
      parent = hash;
    }
    look_at_everything(arena);
    (void)gft_writer_close(writer);
    gft_writer_free(writer);
  }
  gft_arena_free(arena);
  return 0;
}
