// Reads and writes the first page of a segment: what it is, and which digest its records use.
// Its CRC is where the segment's chain of commits starts.
#include <cstring>

#include "../digest/crc32c.h"
#include "parse.h"

namespace gft::disk {
namespace {
constexpr char kMagic[9] = "GFTSEGMT";
}

const char *parse_segment_header(const uint8_t *data, size_t size, const Id *log, uint64_t segment, SegmentHeader &out) {
  if (size < sizeof out) return "it is shorter than its header";
  std::memcpy(&out, data, sizeof out);
  if (std::memcmp(out.magic, kMagic, 8) != 0) return "the magic is not GFTSEGMT";
  if (out.version != kVersion) return "its format version is another one";
  if (crc32c(&out, offsetof(SegmentHeader, crc)) != out.crc) return "its header's checksum does not hold";
  if (log && std::memcmp(out.log, log->data(), 16) != 0) return "it belongs to another log";
  if (out.segment != segment) return "it is another segment's file";
  if (out.segment_bytes < kMinSegment || out.segment_bytes > kMaxSegment || out.segment_bytes % kPage)
    return "its size is out of range";
  if (std::memchr(out.digest_name, 0, sizeof out.digest_name) == nullptr) return "its digest has no name";
  return nullptr;
}

void build_segment_header(const Id &log, uint64_t segment, uint64_t segment_bytes, const char *digest_name, uint8_t *page) {
  SegmentHeader header{};
  std::memcpy(header.magic, kMagic, 8);
  header.version = kVersion;
  std::memcpy(header.log, log.data(), 16);
  header.segment = segment;
  header.segment_bytes = segment_bytes;
  std::strncpy(header.digest_name, digest_name, sizeof header.digest_name - 1);
  header.crc = crc32c(&header, offsetof(SegmentHeader, crc));
  std::memcpy(page, &header, sizeof header);
}

}  // namespace gft::disk
