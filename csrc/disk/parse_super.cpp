// Reads and writes superblocks: which segments count and how far.
// One CRC covers all of it, so a torn write of one copy leaves the other.
#include <cstring>

#include "../digest/crc32c.h"
#include "parse.h"

namespace gft::disk {
namespace {
constexpr char kMagic[9] = "GFTSUPER";
}

const char *parse_super(const uint8_t *data, size_t size, Super &out) {
  SuperHeader header;
  if (size < sizeof header) return "it is shorter than its header";
  std::memcpy(&header, data, sizeof header);
  if (std::memcmp(header.magic, kMagic, 8) != 0) return "the magic is not GFTSUPER";
  if (header.version != kVersion) return "its format version is another one";
  if (header.segments > kMaxSegments) return "it names more segments than a log may have";
  size_t bytes = sizeof header + header.segments * sizeof(SuperEntry);
  if (size < bytes) return "it is shorter than its segments need";
  uint32_t crc = header.crc;
  header.crc = 0;
  if (crc32c(data + sizeof header, bytes - sizeof header, crc32c(&header, sizeof header)) != crc)
    return "its checksum does not hold";
  out = {};
  std::memcpy(out.log.data(), header.log, 16);
  out.term = header.term;
  out.generation = header.generation;
  out.segments.resize(header.segments);
  if (header.segments) std::memcpy(out.segments.data(), data + sizeof header, bytes - sizeof header);
  uint64_t before = 0;
  for (const SuperEntry &entry : out.segments) {
    if (entry.segment <= before) return "its segments are not in order";
    if (entry.limit > kMaxSegment || entry.limit % kPage) return "a segment's limit is out of range";
    before = entry.segment;
  }
  return nullptr;
}

std::vector<uint8_t> build_super(Super super) {
  SuperHeader header{};
  std::memcpy(header.magic, kMagic, 8);
  header.version = kVersion;
  std::memcpy(header.log, super.log.data(), 16);
  header.term = super.term;
  header.generation = super.generation;
  header.segments = super.segments.size();
  size_t body = super.segments.size() * sizeof(SuperEntry);
  header.crc = crc32c(super.segments.data(), body, crc32c(&header, sizeof header));
  std::vector<uint8_t> out(sizeof header + body);
  std::memcpy(out.data(), &header, sizeof header);
  if (body) std::memcpy(out.data() + sizeof header, super.segments.data(), body);
  return out;
}

}  // namespace gft::disk
