// Mass faults on the arena: flips, torn and lost writes, swaps, copies, replays, relabelled models and lying numbers, by
// seed. Where a checksum alone protects (file header, namespaces, tokens) the attacker computes it; README.md says what a
// forger can do.
#include <fcntl.h>

#include "arena_world.h"
#include "crc32c.h"

using namespace mass;

namespace {

uint64_t hostile(Random &random) {
  static constexpr uint64_t limits[] = {0,          1,
                                        2,          7,
                                        8,          63,
                                        64,         65,
                                        255,        4095,
                                        4096,       4097,
                                        kSlots - 1, kSlots,
                                        kSlots + 1, kFileBytes - 8,
                                        kFileBytes, (1ull << 26) - 1,
                                        1ull << 26, (1ull << 31) - 1,
                                        1ull << 31, (1ull << 32) - 1,
                                        1ull << 32, (1ull << 48) - 1,
                                        1ull << 62, (1ull << 63) - 1,
                                        1ull << 63, ~0ull - 4095,
                                        ~0ull};
  return random.below(10) < 7 ? limits[random.below(std::size(limits))] : random();
}

template <typename T>
T any(Random &random, const std::vector<T> &of) {
  return of[random.below(of.size())];
}

void fix_crc(uint8_t *from, size_t bytes, uint8_t *to) {
  uint32_t crc = crc32c(from, bytes);
  std::memcpy(to, &crc, 4);
}

}  // namespace

int main(int argc, char **argv) {
  ArenaWorld w;
  auto slot = [&](Random &r) { return any(r, w.used); };
  auto two = [&](Random &r) {
    uint64_t a = slot(r), b = slot(r);
    while (b == a) b = slot(r);
    return std::pair(a, b);
  };
  struct Place {
    uint64_t at, bytes;
  };
  const std::vector<Place> everywhere = {{kControl, 384},      {kLanes, 6 * 64},          {kNamespaces, 2 * 4160},
                                         {kIndex, 1024},       {kStates, 8 * kSlots},     {kStamps, 8 * kSlots},
                                         {kHolds, 8 * kSlots}, {kMarks, 8 * kSlots},      {kHeaders, kSlots * kHeaderBytes},
                                         {kLedger, 2 * kHalf}, {kPayload, kSlots * kPage}};
  auto payload_part = [&](Random &r) {
    uint64_t from = r.below(kSlotBytes), bytes = 1 + r.below(kSlotBytes - from);
    return Place{w.payload(slot(r)) + from, bytes};
  };

  std::vector<Kind> kinds = {
      {"flip_payload", [&](Random &r) { w.flip(r, w.payload(slot(r)), kSlotBytes); }},
      {"flip_header", [&](Random &r) { w.flip(r, w.header(slot(r)), kHeaderBytes); }},
      {"flip_state", [&](Random &r) { w.flip(r, kStates, 8 * kSlots); }},
      {"flip_index", [&](Random &r) { w.flip(r, kIndex, 1024); }},
      {"flip_namespace", [&](Random &r) { w.flip(r, kNamespaces + r.below(2) * 4160, 80), w.look_anew = true; }},
      {"flip_control_or_lane", [&](Random &r) { r.below(2) ? w.flip(r, kControl, 384) : w.flip(r, kLanes, 6 * 64); }},
      {"flip_stamp_hold_or_mark", [&](Random &r) { w.flip(r, kStamps + r.below(3) * kPage, 8 * kSlots); }},
      {"flip_ledger", [&](Random &r) { w.flip(r, kLedger, 2 * kHalf); }},
      {"many_flips",
       [&](Random &r) {
         for (uint64_t i = 2 + r.below(30); i > 0; --i) w.flip(r, r.below(2) ? kHeaders : 0, kFileBytes - kHeaders);
       }},
      {"torn_payload_write",
       [&](Random &r) {  // a new block's bytes arrived in part: the rest is what was there before
         uint64_t at = w.payload(slot(r)), cut = 1 + r.below(kSlotBytes - 1);
         bool front = r.below(2);
         std::memcpy(w.memory + at + (front ? 0 : cut), w.older.data() + at + (front ? 0 : cut),
                     front ? cut : kSlotBytes - cut);
       }},
      {"torn_header_write",
       [&](Random &r) {
         uint64_t at = w.header(slot(r)), cut = 8 * (1 + r.below(23));
         std::memcpy(w.memory + at, w.older.data() + at, cut);
       }},
      {"lost_write",
       [&](Random &r) {
         Place p = payload_part(r);
         std::memcpy(w.memory + p.at, w.older.data() + p.at, p.bytes);
       }},
      {"zeroed_or_stuck",
       [&](Random &r) {
         Place p = r.below(2) ? payload_part(r) : any(r, everywhere);
         uint64_t from = r.below(p.bytes), bytes = 1 + r.below(std::min<uint64_t>(p.bytes - from, 700));
         std::memset(w.memory + p.at + from, r.below(2) ? 0 : 0xff, bytes);
       }},
      {"noise",
       [&](Random &r) {
         Place p = r.below(2) ? payload_part(r) : any(r, everywhere);
         for (uint64_t i = r.below(p.bytes), n = std::min<uint64_t>(p.bytes - i, 1 + r.below(200)); n > 0; --n, ++i)
           w.memory[p.at + i] = static_cast<uint8_t>(r());
       }},
      {"hole_in_the_file",
       [&](Random &r) {
         uint64_t page = r.below(2) ? w.payload(slot(r)) : kIndex + r.below((kFileBytes - kIndex) / kPage) * kPage;
         int file = open(w.path.c_str(), O_RDWR | O_CLOEXEC);
         CHECK(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page), kPage) == 0);
         close(file);
       }},
      {"swapped_payloads",
       [&](Random &r) {
         auto [a, b] = two(r);
         w.swap(w.payload(a), w.payload(b), kSlotBytes);
       }},
      {"swapped_headers",
       [&](Random &r) {
         auto [a, b] = two(r);
         w.swap(w.header(a), w.header(b), kHeaderBytes);
       }},
      {"swapped_blocks",
       [&](Random &r) {
         auto [a, b] = two(r);
         w.swap(w.header(a), w.header(b), kHeaderBytes);
         w.swap(w.payload(a), w.payload(b), kSlotBytes);
         if (r.below(2)) w.swap(kStates + 8 * a, kStates + 8 * b, 8);
       }},
      {"duplicated_block",
       [&](Random &r) {  // one block poses as another, sometimes with its state word and its index entry
         auto [a, b] = two(r);
         w.copy(w.header(b), w.header(a), kHeaderBytes);
         if (r.below(4)) w.copy(w.payload(b), w.payload(a), kSlotBytes);
         if (r.below(2)) w.copy(kStates + 8 * b, kStates + 8 * a, 8);
         if (r.below(2))
           for (uint64_t i = 0; i < 128; ++i)
             if (uint64_t entry = w.word(kIndex + 8 * i); entry && (entry & 0x3ffffff) == a + 1)
               w.set_word(kIndex + 8 * i, (entry & ~0x3ffffffull) | (b + 1));
       }},
      {"stale_epoch",
       [&](Random &r) {  // what the same slots held in epoch 1, sealed by the same arena
         for (uint64_t n = 1 + r.below(4); n > 0; --n) {
           uint64_t at = slot(r);
           std::memcpy(w.memory + w.header(at), w.older.data() + w.header(at), kHeaderBytes);
           if (r.below(4)) std::memcpy(w.memory + w.payload(at), w.older.data() + w.payload(at), kSlotBytes);
         }
         if (r.below(3) == 0) std::memcpy(w.memory + kIndex, w.older.data() + kIndex, 1024);
       }},
      {"stale_payload",
       [&](Random &r) {
         uint64_t at = w.payload(slot(r));
         std::memcpy(w.memory + at, w.older.data() + at, kSlotBytes);
       }},
      {"wrong_namespace",
       [&](Random &r) {  // relabelled by number, by identity, or both, sometimes under a seal that fits
         auto [a, b] = two(r);
         uint32_t number = static_cast<uint32_t>(hostile(r));
         bool by_number = r.below(10) < 7;
         if (by_number) std::memcpy(w.memory + w.header(a) + 16, &number, 4);
         if (r.below(10) < 7) w.copy(w.header(a) + 112, w.header(b) + 112, 16);
         // NOTE: sealed again as another model's with number and identity both right it would be that model's: a forgery.
         if (by_number && number > 1 && r.below(2)) w.reseal(a);
       }},
      {"lying_namespace_record",
       [&](Random &r) {  // exchanged, or saying another model, with its checksum right
         uint64_t a = kNamespaces, b = kNamespaces + 4160;
         if (r.below(2)) {
           w.swap(a, b, 4160);
         } else {
           uint32_t bytes = static_cast<uint32_t>(r.below(3) ? r.below(40) : hostile(r));
           uint8_t *at = w.memory + (r.below(2) ? a : b);
           std::memcpy(at, &bytes, 4);
           at[64 + r.below(8)] ^= 1;
           std::vector<uint8_t> covered(at, at + 4);
           covered.insert(covered.end(), at + 64, at + 64 + std::min<uint32_t>(bytes, 4096));
           fix_crc(covered.data(), covered.size(), at + 4);
         }
         w.look_anew = true;
       }},
      {"lying_header_lengths",
       [&](Random &r) {  // numbers, limits and lengths under a seal and a link that fit
         uint64_t at = slot(r);
         static constexpr uint64_t fields[][2] = {{0, 8}, {8, 8}, {16, 4}, {24, 8}, {32, 8}, {40, 4}, {44, 4}};
         const auto &field = fields[r.below(7)];
         uint64_t value = hostile(r);
         if (field[0] == 40 && (value & 0xffffffff) <= 64) value = 65 + value % 64;  // shorter: another name, a forgery
         std::memcpy(w.memory + w.header(at) + field[0], &value, field[1]);
         w.reseal(at);
       }},
      {"lying_header_words", [&](Random &r) { w.set_word(w.header(slot(r)) + 8 * r.below(24), hostile(r)); }},
      {"lying_chain",
       [&](Random &r) {  // the parent's link of another block, under a seal that fits
         auto [a, b] = two(r);
         w.copy(w.header(a) + 128, w.header(b) + 144, 16);
         w.reseal(a);
       }},
      {"lying_file_header",
       [&](Random &r) {  // with its checksum right
         static constexpr uint64_t fields[] = {12, 16, 24, 32, 40, 48, 64};
         w.set_word(fields[r.below(7)], r.below(2) ? hostile(r) : 1 + r.below(64));
         fix_crc(w.memory, 124, w.memory + 124);
         w.look_anew = true;
       }},
      {"lying_token",
       [&](Random &r) {  // of this epoch, the last or the next, with its checksum right
         uint8_t *at = w.memory + kControl + 256 + 32 * r.below(4);
         uint64_t epoch = r.below(4);
         if (r.below(2)) std::memcpy(at, &epoch, 8);
         at[8 + r.below(16)] ^= 1u << r.below(8);
         fix_crc(at, 28, at + 28);
         w.flip(r, kControl, r.below(2) ? 8 : 384);
         w.stir_too = true;
       }},
      {"lying_states",
       [&](Random &r) {
         for (int i = 0; i < 3; ++i) {
           uint64_t at = kStates + 8 * r.below(kSlots), word = w.word(at);
           switch (r.below(4)) {
             case 0:
               word = (word & ~0xffull) | r.below(6);
               break;
             case 1:
               word = (word & ~0xff00ull) | r.below(256) << 8;
               break;
             case 2:
               word += (r.below(2) ? 1 : uint64_t(-1)) << 16;
               break;
             default:
               word = hostile(r);
           }
           w.set_word(at, word);
         }
       }},
      {"lying_index",
       [&](Random &r) {  // living entries lead elsewhere, or all places lead to one slot
         uint64_t one = r.below(kSlots);
         bool all = r.below(4) == 0;
         for (uint64_t i = 0; i < 128; ++i) {
           uint64_t entry = w.word(kIndex + 8 * i);
           if (all)
             w.set_word(kIndex + 8 * i,
                        r.below(1 << 20) << 44 | ((w.word(kStates + 8 * one) >> 16) & 0x3ffff) << 26 | (one + 1));
           else if (entry && r.below(2))
             w.set_word(kIndex + 8 * i, (entry & ~0x3ffffffull) | (1 + (r.below(2) ? slot(r) : r.below(1 << 26))));
         }
       }},
      {"lying_control",
       [&](Random &r) {
         static constexpr uint64_t words[] = {0, 8, 16, 64, 128, 136, 144, 152, 192, 256, 288};
         w.set_word(kControl + words[r.below(11)], hostile(r));
         if (r.below(2)) w.set_word(kLanes + 8 * r.below(48), hostile(r));
       }},
      {"moved_ledger_record",
       [&](Random &r) {  // whole, to where it does not belong
         uint64_t from = kLedger + kHalf + 8 * r.below(200), to = kLedger + kHalf + 8 * r.below(200);
         w.copy(to, from, 8 * (3 + r.below(12)));
       }},
      {"stale_ledger",
       [&](Random &r) {
         if (r.below(2))
           w.copy(kLedger + kHalf, kLedger, kHalf);
         else
           w.set_word(kControl + 128, w.word(kControl + 128) ^ (1 + r.below(8)));
       }},
  };
  kinds.push_back({"truncated_file", [&](Random &r) {
                     // Cut while it is mapped and in use; grown again, as a disk that lost its last pages would look.
                     uint64_t pages = r.below(2) ? 1 + r.below(kSlots) : 1 + r.below((kFileBytes - kIndex) / kPage);
                     w.resize(kFileBytes - pages * kPage + r.below(kPage));
                     gft_arena *arena = nullptr;
                     if (gft_arena_open(w.path.c_str(), 1, &arena) == GFT_OK) accepted("open of a truncated file");
                     w.resize(kFileBytes);
                   }});
  return run(
      argc, argv, kinds, [&] { w.restore(); }, [&](Random &r) { return w.judge(r); });
}
