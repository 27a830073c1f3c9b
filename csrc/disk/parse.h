// Every parser of bytes from disk: pure functions over (pointer, length) that touch nothing else.
// Each answers null when the bytes hold and otherwise says what does not; `out` counts only in the first case.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "../digest/digest.h"
#include "format.h"
#include "log.h"

namespace gft::disk {

// Where a page was read from. `limit`: bytes of the segment that may be believed to exist.
struct Place {
  Id log;
  uint64_t segment, offset, limit;
};

struct Super {
  Id log{};
  uint64_t term = 0, generation = 0;
  std::vector<SuperEntry> segments;  // numbers strictly increasing
};
const char *parse_super(const uint8_t *data, size_t size, Super &out);

// `log` null: any (the superblock is lost).
const char *parse_segment_header(const uint8_t *data, size_t size, const Id *log, uint64_t segment, SegmentHeader &out);

struct Record {
  Kind kind;
  Entry entry;
  uint32_t crc, chunk_bytes, chunks;
  std::vector<Id> chunk_digests;
  uint64_t bytes() const;  // in the segment, header included
};
// `digest`: the segment's. The link of a block is computed anew.
const char *parse_record(const uint8_t *data, size_t size, const Place &place, const DigestAlgorithm &digest, Record &out);

struct Named {
  uint64_t offset;
  uint32_t crc;
  bool operator==(const Named &) const = default;
};
struct Commit {
  uint64_t sequence, from;
  uint32_t previous, crc;
  std::vector<Named> records;
};
const char *parse_commit(const uint8_t *data, size_t size, const Place &place, Commit &out);

struct Summary {
  uint64_t limit = 0;
  std::string digest_name;
  std::vector<std::string> namespaces;
  std::vector<Entry> entries;
};
const char *parse_summary(const uint8_t *data, size_t size, const Id &log, uint64_t segment, Summary &out);

// Shared by the record and summary parsers and by append: null, or which rule the identity breaks.
const char *check_key(const Key &key, const DigestAlgorithm &digest);
Id link_of(const Key &key, const DigestAlgorithm &digest);

// Of one piece of the stored bytes, bound to the block's link and to its place in the block: with a checksum made to fit, a
// piece of another block or place still does not hold.
Id chunk_digest(const DigestAlgorithm &digest, const Id &link, uint64_t index, const uint8_t *data, size_t bytes);

// The other direction. Sizes of the results are multiples of nothing; single pages are written into `page`.
std::vector<uint8_t> build_super(Super super);
std::vector<uint8_t> build_summary(const Id &log, uint64_t segment, const Summary &summary);
void build_segment_header(const Id &log, uint64_t segment, uint64_t segment_bytes, const char *digest_name, uint8_t *page);
void build_commit(const Place &place, const Commit &commit, uint8_t *page);
// Everything but place and CRC, with the chunk digests taken from `stored`; then those two, when the place is known.
void build_record(Kind kind, Codec codec, const Key &key, const uint8_t *stored, uint64_t stored_bytes,
                  const DigestAlgorithm &digest, uint8_t *page);
uint32_t place_record(const Place &place, uint8_t *page);

}  // namespace gft::disk
