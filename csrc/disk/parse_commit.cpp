// Reads and writes commit pages: the word that makes the records before it count.
// Each names its predecessor by CRC, so commits of another life of the same place never continue a chain.
#include <cstring>

#include "../digest/crc32c.h"
#include "parse.h"

namespace gft::disk {
namespace {
constexpr char kMagic[9] = "GFTCOMIT";
}

const char *parse_commit(const uint8_t *data, size_t size, const Place &place, Commit &out) {
  if (size < sizeof(CommitPage)) return "it is shorter than a page";
  CommitPage page;
  std::memcpy(&page, data, sizeof page);
  if (std::memcmp(page.magic, kMagic, 8) != 0) return "the magic is not GFTCOMIT";
  if (page.version != kVersion) return "its format version is another one";
  if (crc32c(&page, offsetof(CommitPage, crc)) != page.crc) return "its checksum does not hold";
  if (std::memcmp(page.log, place.log.data(), 16) != 0 || page.segment != place.segment || page.offset != place.offset)
    return "it belongs to another place";
  if (page.records == 0 || page.records > kGroupRecords) return "it names no records, or too many";
  if (page.from < kPage || page.from >= page.offset || page.from % kPage) return "its group starts out of range";
  out = {page.sequence, page.from, page.previous, page.crc, {}};
  out.records.reserve(page.records);
  for (uint32_t i = 0; i < page.records; ++i) out.records.push_back({page.record[i].page * kPage, page.record[i].crc});
  return nullptr;
}

void build_commit(const Place &place, const Commit &commit, uint8_t *page) {
  auto &to = *reinterpret_cast<CommitPage *>(page);
  to = {};
  std::memcpy(to.magic, kMagic, 8);
  to.version = kVersion;
  to.records = static_cast<uint32_t>(commit.records.size());
  std::memcpy(to.log, place.log.data(), 16);
  to.segment = place.segment;
  to.offset = place.offset;
  to.sequence = commit.sequence;
  to.from = commit.from;
  to.previous = commit.previous;
  for (uint32_t i = 0; i < to.records; ++i) {
    to.record[i].page = static_cast<uint32_t>(commit.records[i].offset / kPage);
    to.record[i].crc = commit.records[i].crc;
  }
  to.crc = crc32c(&to, offsetof(CommitPage, crc));
}

}  // namespace gft::disk
