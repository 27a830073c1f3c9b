// What the sound arena holds, and the vocabulary of patches: bytes, words, bits, copies, and checksums made to fit.
// Every patch stays inside the file; what it says is the input's alone.
#include "arena_image.h"

#include <algorithm>

#include "../../csrc/digest/crc32c.h"

namespace fuzz {

// Two models, one chain of five blocks, three slots free, and a ledger that was compacted once.
void ArenaImage::fill() {
  uint32_t index;
  uint64_t epoch;
  CHECK(gft_arena_add_namespace(arena, bytes_of("model A"), &index) == GFT_OK);
  CHECK(gft_arena_add_namespace(arena, bytes_of("model B"), &index) == GFT_OK);
  CHECK(gft_arena_begin_epoch(arena, token(), 0, 0, &epoch) == GFT_OK && epoch == 1);
  gft_writer *writer = nullptr;
  CHECK(gft_arena_attach(arena, 0, token(), 0, 0, &writer) == GFT_OK);
  for (uint64_t i = 0; i < kChain; ++i) {
    std::string hash = name(i), parent = i ? name(i - 1) : "";
    gft_claim *claim = nullptr;
    CHECK(gft_writer_claim(writer, bytes_of(hash), i ? bytes_of(parent) : no_parent(), i, &claim) == GFT_OK);
    uint64_t slot, address;
    gft_claim_info(claim, &slot, &address);
    fill_payload(hash, reinterpret_cast<uint8_t *>(address), kSlotBytes);
    CHECK(gft_claim_seal(claim) == GFT_OK);
    gft_claim_free(claim);
  }
  gft_writer_free(writer);
  gft_ledger *ledger = nullptr;
  CHECK(gft_arena_open_ledger(arena, 0, &ledger) == GFT_OK);
  CHECK(gft_ledger_append(ledger, 1, bytes_of("of the half that is over")) == GFT_OK);
  CHECK(gft_ledger_begin_compaction(ledger) == GFT_OK);
  for (uint32_t i = 0; i < 6; ++i) CHECK(gft_ledger_append(ledger, i, bytes_of(std::string(i * 7, 'a'))) == GFT_OK);
  CHECK(gft_ledger_commit_compaction(ledger) == GFT_OK);
  gft_ledger_free(ledger);
}

void ArenaImage::reseal(uint64_t slot) {
  uint8_t *at = memory + geometry.headers + slot * sizeof(gft::SlotHeader);
  gft::SlotHeader header;
  std::memcpy(&header, at, sizeof header);
  gft::Digest link = gft::Core::link_of(gft::preferred_digest(), header);
  std::memcpy(header.link, link.data(), 16);
  struct {
    uint8_t header[offsetof(gft::SlotHeader, seal)];
    uint64_t slot;
    uint8_t arena_id[16];
  } covered;
  std::memcpy(covered.header, &header, sizeof covered.header);
  covered.slot = slot;
  std::memcpy(covered.arena_id, memory + offsetof(gft::FileHeader, arena_id), 16);
  std::memcpy(header.seal, gft::preferred_digest().of(&covered, sizeof covered).data(), 16);
  std::memcpy(at, &header, sizeof header);
}

void ArenaImage::patch_once(Input &input) {
  enum Kind { bytes, word, bit, copy, seal, namespace_crc, token_crc, record_crc, kinds };
  auto kind = static_cast<Kind>(input.take<uint8_t>() % kinds);
  const auto all = regions();
  Region region = all[input.take<uint8_t>() % all.size()];
  uint64_t place = input.take<uint16_t>() % region.bytes;
  uint8_t *at = memory + region.at + place;
  switch (kind) {
    case bytes: {
      auto fresh = input.bytes(std::min<uint64_t>(input.take<uint8_t>(), region.bytes - place));
      if (!fresh.empty()) std::memcpy(at, fresh.data(), fresh.size());
      break;
    }
    case word: {
      uint64_t value = input.take<uint64_t>();
      std::memcpy(memory + region.at + place / 8 * 8, &value, 8);
      break;
    }
    case bit:
      *at ^= static_cast<uint8_t>(1u << input.take<uint8_t>() % 8);
      break;
    case copy: {
      Region from = all[input.take<uint8_t>() % all.size()];
      uint64_t start = input.take<uint16_t>() % from.bytes;
      uint64_t count = std::min({uint64_t{input.take<uint8_t>()}, from.bytes - start, region.bytes - place});
      std::memmove(at, memory + from.at + start, count);
      break;
    }
    case seal:
      reseal(place % kSlots);
      break;
    case namespace_crc: {
      auto *record = reinterpret_cast<gft::NamespaceRecord *>(memory + geometry.namespaces) + place % 2;
      uint32_t length = record->bytes;
      record->crc = gft::crc32c(record->record, std::min(length, gft::kNamespaceBytes), gft::crc32c(&length, 4));
      break;
    }
    case token_crc: {
      auto *record = reinterpret_cast<gft::Control *>(memory + geometry.control)->tokens + place % 4;
      record->crc = gft::crc32c(record, offsetof(gft::TokenRecord, crc));
      break;
    }
    case record_crc: {  // of the ledger record that would start at this place of a half
      uint64_t half = place & 1, offset = place % geometry.half_bytes / 8 * 8;
      uint8_t *start = memory + geometry.ledger + half * geometry.half_bytes + offset;
      gft::RecordHeader header;
      if (geometry.half_bytes - offset < sizeof header) break;
      std::memcpy(&header, start, sizeof header);
      if (header.bytes > geometry.half_bytes - offset - sizeof header) break;
      header.commit = gft::commit_of(header, offset, start + sizeof header);
      std::memcpy(start, &header, sizeof header);
      break;
    }
    case kinds:
      break;
  }
}

}  // namespace fuzz
