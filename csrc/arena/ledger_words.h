// The packed words of the ledger and the size and checksum of its records, shared by its reader and its writer.
// See README.md in this folder for the order in which they are written.
#pragma once

#include "../digest/crc32c.h"
#include "ledger.h"

namespace gft {

// Which half is the ledger. `fencing`: somebody is taking over; the former writer must not report success any more.
struct LedgerWord {
  uint64_t generation;
  bool fencing;
  unsigned half;

  uint64_t packed() const { return generation << 2 | uint64_t{fencing} << 1 | half; }
  static LedgerWord of(uint64_t word) { return {word >> 2, (word >> 1 & 1) != 0, static_cast<unsigned>(word & 1)}; }
};

inline constexpr uint64_t kTailGenerations = 0xffffff;
inline uint64_t tail_word(uint64_t generation, uint64_t used) { return (generation & kTailGenerations) << 40 | used; }
inline uint64_t tail_generation(uint64_t word) { return word >> 40; }
inline uint64_t tail_used(uint64_t word) { return word & ((uint64_t{1} << 40) - 1); }

// Header and payload, rounded up so that the next commit word is aligned.
inline uint64_t record_bytes(uint32_t payload) { return (sizeof(RecordHeader) + uint64_t{payload} + 7) / 8 * 8; }

// Covers the place as well: a whole record that was moved is not one.
inline uint64_t commit_of(const RecordHeader &header, uint64_t offset, const uint8_t *payload) {
  uint32_t crc = crc32c(&header.generation, sizeof header - sizeof header.commit, crc32c(&offset, sizeof offset));
  return kCommitMark | crc32c(payload, header.bytes, crc);
}

LedgerContents replay_half(const Core &core, unsigned half, uint64_t generation);

}  // namespace gft
