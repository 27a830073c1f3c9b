// The bytes of an arena file, as structures; README.md in this folder says the same in prose and says why.
// Everything here may have been written by anybody: code copies a field once, checks the copy, and uses the copy.
#pragma once

#include <cstdint>

namespace gft {

inline constexpr char kMagic[8] = {'G', 'F', 'T', 'A', 'R', 'E', 'N', 'A'};
inline constexpr uint32_t kFormatVersion = 2;
inline constexpr uint64_t kPage = 4096;
inline constexpr uint32_t kLanes = 128;
inline constexpr uint32_t kNamespaces = 64;
inline constexpr uint32_t kNamespaceBytes = 4096;
inline constexpr uint32_t kTokens = 128;
inline constexpr uint32_t kHashBytes = 64;
inline constexpr uint32_t kBucket = 8;          // index entries of one cache line
inline constexpr uint32_t kProbedBuckets = 16;  // a lookup never looks at more

struct FileHeader {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint64_t slot_bytes;
  uint64_t slots;
  uint64_t ledger_bytes;
  uint64_t file_bytes;
  char digest_name[16];
  uint8_t arena_id[16];
  uint8_t reserved[44];
  uint32_t crc;  // CRC32C of everything above
};
static_assert(sizeof(FileHeader) == 128);

// The engine start that opened `epoch`. Record e lies at e mod kTokens; it counts once Control::epoch has reached e.
struct TokenRecord {
  uint64_t epoch;
  uint8_t token[16];
  uint32_t pid;
  uint32_t crc;
};
static_assert(sizeof(TokenRecord) == 32);

struct Control {
  alignas(64) uint64_t epoch;
  uint64_t namespaces;               // how many records count
  uint64_t admin_pid;                // who took the administration lock last
  alignas(64) uint64_t clock;        // ticks of the use stamps
  alignas(64) uint64_t ledger_word;  // generation << 2 | fencing << 1 | half
  uint64_t ledger_tail;              // generation << 40 | bytes used; a hint that the tail was not cut
  uint64_t ledger_pid[2];
  alignas(64) uint64_t caps;  // CapsWord
  alignas(64) TokenRecord tokens[kTokens];
};
static_assert(sizeof(Control) <= 2 * kPage);

struct LaneRecord {
  uint64_t ticket;  // a writer whose ticket is no longer here is fenced
  uint64_t epoch;
  uint32_t shard;
  uint32_t pid;
  uint8_t token[16];
  uint64_t reserved[3];
};
static_assert(sizeof(LaneRecord) == 64);

struct NamespaceRecord {
  uint32_t bytes;
  uint32_t crc;  // of `bytes` and the record
  uint64_t quota;    // slots its blocks may have, 0: no limit
  uint64_t used;     // slots they have; a hint that every scan puts right
  uint64_t evicted;  // blocks that had to go because of the quota
  uint8_t reserved[32];
  uint8_t record[kNamespaceBytes];
};
static_assert(sizeof(NamespaceRecord) == 64 + kNamespaceBytes);

// What a sealed block says about itself. `seal` covers all above it, the slot number and the arena's identity.
struct SlotHeader {
  uint64_t generation;
  uint64_t epoch;
  uint32_t name_space;
  uint32_t shard;
  uint64_t position;
  uint64_t payload_bytes;
  uint32_t hash_bytes;
  uint32_t reserved;
  uint8_t hash[kHashBytes];
  uint8_t name_space_id[16];
  uint8_t parent_link[16];
  uint8_t link[16];
  uint8_t digest[16];
  uint8_t seal[16];
};
static_assert(sizeof(SlotHeader) == 192 && sizeof(SlotHeader) % 8 == 0);

struct RecordHeader {
  uint64_t commit;  // 0: nothing here yet; else kCommitMark | CRC32C of offset, rest of the header, payload
  uint64_t generation;
  uint32_t bytes;
  uint32_t kind;
};
static_assert(sizeof(RecordHeader) == 24);
inline constexpr uint64_t kCommitMark = 0x5ea1ed1e00000000;

// ---- packed words ----

enum class Slot : uint8_t { empty = 0, writing = 1, sealed = 2, evicting = 3 };

// State of one slot: generation (48 bits) | lane (8) | state (8). The lane counts in `writing` and `evicting` only.
struct StateWord {
  uint64_t generation;
  uint8_t lane;
  Slot state;

  static constexpr uint64_t kGenerations = uint64_t{1} << 48;

  uint64_t packed() const { return generation << 16 | uint64_t{lane} << 8 | static_cast<uint8_t>(state); }
  static StateWord of(uint64_t word) {
    return {word >> 16, static_cast<uint8_t>(word >> 8), static_cast<Slot>(word & 0xff)};
  }
  bool readable() const { return state == Slot::sealed || state == Slot::evicting; }
  StateWord with(Slot next, uint8_t owner = 0) const { return {generation, owner, next}; }
  StateWord claimed(uint8_t owner) const { return {(generation + 1) % kGenerations, owner, Slot::writing}; }
};

// Index entry: tag (20 bits) | low generation bits (18) | slot + 1 (26). Dead as soon as the slot's generation moved on,
// so two claims of a slot never leave the same entry and a late compare-exchange cannot remove a live one.
struct IndexEntry {
  static constexpr uint64_t kSlotBits = 26, kGenerationBits = 18;
  static constexpr uint64_t kMaxSlots = (uint64_t{1} << kSlotBits) - 2;

  static uint64_t make(uint64_t key, uint64_t generation, uint64_t slot) {
    return (key >> 44) << 44 | (generation & ((1u << kGenerationBits) - 1)) << kSlotBits | (slot + 1);
  }
  static uint64_t slot(uint64_t entry) { return (entry & ((1u << kSlotBits) - 1)) - 1; }
  static bool same_tag(uint64_t entry, uint64_t key) { return entry >> 44 == key >> 44; }
  static bool same_generation(uint64_t entry, uint64_t generation) {
    uint64_t mask = (1u << kGenerationBits) - 1;
    return ((entry >> kSlotBits) & mask) == (generation & mask);
  }
};

// Holds on a slot: epoch (32 bits) | low generation bits (12) | count (20). Only those of this or the last epoch count.
struct HoldWord {
  uint64_t epoch, generation, count;

  uint64_t packed() const { return epoch << 32 | (generation & 0xfff) << 20 | count; }
  static HoldWord of(uint64_t word) { return {word >> 32, (word >> 20) & 0xfff, word & 0xfffff}; }
  bool counts(uint64_t now, uint64_t slot_generation) const {
    return count > 0 && generation == (slot_generation & 0xfff) && epoch <= now && epoch + 1 >= now;
  }
};

// What the eviction policy knows of a slot beside stamp and hold: low generation bits (16) | end of the pin in seconds since
// 1970 (32, 0: none) | namespace + 1 (8) | protected (8). Without the slot's generation it says nothing.
struct MarkWord {
  uint64_t generation;
  uint32_t pinned_until;
  uint8_t owner;  // namespace + 1
  bool is_protected;

  static constexpr uint32_t kUntilUnpinned = 0xffffffff;

  uint64_t packed() const {
    return (generation & 0xffff) << 48 | uint64_t{pinned_until} << 16 | uint64_t{owner} << 8 | (is_protected ? 1 : 0);
  }
  static MarkWord of(uint64_t word) {
    return {word >> 48, static_cast<uint32_t>(word >> 16), static_cast<uint8_t>(word >> 8), (word & 1) != 0};
  }
  bool belongs_to(uint64_t slot_generation) const {
    return generation == (slot_generation & 0xffff) && owner > 0 && owner <= kNamespaces;
  }
};

// The caps of the eviction policy in thousandths of the slots; a word that no setting of ours makes means the defaults.
struct CapsWord {
  uint64_t protected_part = 800, pinned_part = 250;

  static constexpr uint64_t kMark = 0xca95, kMostPinned = 900;

  uint64_t packed() const { return kMark << 32 | protected_part << 16 | pinned_part; }
  static CapsWord of(uint64_t word) {
    CapsWord caps{(word >> 16) & 0xffff, word & 0xffff};
    return word >> 32 == kMark && caps.protected_part <= 1000 && caps.pinned_part <= kMostPinned ? caps : CapsWord{};
  }
};

// Use stamp: tick (40 bits) | depth (24); within one tick deeper blocks are older, so that parents outlive children.
inline uint64_t use_stamp(uint64_t tick, uint64_t depth) {
  constexpr uint64_t kDeepest = (1u << 24) - 1;
  return tick << 24 | (kDeepest - (depth < kDeepest ? depth : kDeepest));
}

}  // namespace gft
