// The bytes of a disk log, as structures; README.md in this folder says the same in prose and says why.
// Everything read into these may have been written by anybody: parse_*.cpp decides what holds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gft::disk {

inline constexpr uint64_t kPage = 4096;
inline constexpr uint32_t kVersion = 1;
inline constexpr uint32_t kMaxChunks = 128;
inline constexpr uint32_t kMaxHash = 64;
inline constexpr uint32_t kMaxNamespace = 4096;
inline constexpr uint32_t kGroupRecords = 480;
inline constexpr uint64_t kMinSegment = uint64_t{64} << 10;
inline constexpr uint64_t kMaxSegment = uint64_t{4} << 30;
inline constexpr uint32_t kMaxSegments = 1u << 20;

enum class Kind : uint16_t { block = 1, name_space = 2 };

struct SegmentHeader {
  char magic[8];  // GFTSEGMT
  uint32_t version;
  uint32_t reserved0;
  uint8_t log[16];
  uint64_t segment;
  uint64_t segment_bytes;
  char digest_name[16];
  uint8_t reserved[4096 - 68];
  uint32_t crc;  // CRC32C of everything above
};
static_assert(sizeof(SegmentHeader) == kPage);

struct RecordHeader {
  char magic[8];  // GFTRECRD
  uint32_t version;
  uint16_t kind;
  uint16_t codec;
  uint8_t log[16];
  uint64_t segment, offset;
  uint8_t name_space[16], parent_link[16], link[16], digest[16];
  uint64_t position, epoch, payload_bytes, stored_bytes;
  uint32_t shard, hash_bytes;
  uint8_t hash[kMaxHash];
  char digest_name[16];
  uint32_t chunk_bytes, chunks;
  uint8_t chunk_digests[kMaxChunks][16];
  uint8_t reserved[4096 - 2292];
  uint32_t crc;
};
static_assert(sizeof(RecordHeader) == kPage);

struct CommitPage {
  char magic[8];  // GFTCOMIT
  uint32_t version, records;
  uint8_t log[16];
  uint64_t segment, offset, sequence, from;
  uint32_t previous, reserved0;
  struct {
    uint32_t page, crc;
  } record[kGroupRecords];
  uint8_t reserved[4096 - 76 - 8 * kGroupRecords];
  uint32_t crc;
};
static_assert(sizeof(CommitPage) == kPage);

// Followed by `segments` entries; `crc` is of all of it with this field zero.
struct SuperHeader {
  char magic[8];  // GFTSUPER
  uint32_t version, crc;
  uint8_t log[16];
  uint64_t term, generation, segments;
};
static_assert(sizeof(SuperHeader) == 56);
struct SuperEntry {
  uint64_t segment, limit, flags;
};
inline constexpr uint64_t kTried = 1;  // compression did not pay here

// Followed by `namespaces` of (uint32 bytes, record, zeros to 8), then `records` entries; `crc` as above.
struct SummaryHeader {
  char magic[8];  // GFTSUMRY
  uint32_t version, crc;
  uint8_t log[16];
  uint64_t segment, limit;
  uint32_t namespaces, records;
  char digest_name[16];
};
static_assert(sizeof(SummaryHeader) == 72);
struct SummaryEntry {
  uint8_t name_space[16], parent_link[16], link[16], digest[16];
  uint64_t position, epoch, payload_bytes, stored_bytes;
  uint32_t shard, page, hash_bytes, codec;
  uint8_t hash[kMaxHash];
};
static_assert(sizeof(SummaryEntry) == 176);

// First bytes of `lock`; hints that something changed.
struct Pulse {
  uint64_t term, generation, commits, pid;
  bool operator==(const Pulse &) const = default;
};

inline uint64_t whole_pages(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
inline uint64_t record_bytes(uint64_t stored) { return kPage + whole_pages(stored); }
// The smallest power of two from 4096 on that cuts `stored` into at most kMaxChunks pieces.
inline uint64_t chunk_for(uint64_t stored) {
  uint64_t chunk = kPage;
  while (stored > chunk * kMaxChunks) chunk *= 2;
  return chunk;
}

}  // namespace gft::disk
