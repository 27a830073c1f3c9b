// Reads and writes summaries: identity and place of every record of a segment that no longer grows.
// A summary is a shortcut for a scan; where it does not hold, the segment is scanned.
#include <algorithm>
#include <cstring>

#include "../digest/crc32c.h"
#include "parse.h"

namespace gft::disk {
namespace {

constexpr char kMagic[9] = "GFTSUMRY";
constexpr uint32_t kMaxNamespaces = 4096;

uint32_t crc_of(SummaryHeader header, const uint8_t *body, size_t bytes) {
  header.crc = 0;
  return crc32c(body, bytes, crc32c(&header, sizeof header));
}

const char *take(const SummaryEntry &from, uint64_t segment, uint64_t limit, const DigestAlgorithm *digest, Entry &to) {
  if (from.hash_bytes > kMaxHash) return "a hash is too long";
  if (from.codec > static_cast<uint32_t>(Codec::lz4)) return "a codec is unknown";
  to.segment = segment;
  to.offset = from.page * kPage;
  to.stored_bytes = from.stored_bytes;
  to.codec = static_cast<Codec>(from.codec);
  if (to.offset < kPage || to.offset >= limit || from.stored_bytes == 0 || from.stored_bytes > limit ||
      record_bytes(from.stored_bytes) > limit - to.offset)
    return "a record lies outside its segment";
  if (from.payload_bytes > kMaxSegment ||
      (from.codec == 0 ? from.payload_bytes != from.stored_bytes : from.payload_bytes <= from.stored_bytes))
    return "a record's lengths contradict each other";
  to.key.name_space = std::to_array(from.name_space);
  to.key.shard = from.shard;
  to.key.position = from.position;
  to.key.epoch = from.epoch;
  to.key.payload_bytes = from.payload_bytes;
  to.key.hash.assign(reinterpret_cast<const char *>(from.hash), from.hash_bytes);
  to.key.parent_link = std::to_array(from.parent_link);
  to.key.link = std::to_array(from.link);
  to.key.digest = std::to_array(from.digest);
  return digest ? check_key(to.key, *digest) : nullptr;
}

}  // namespace

const char *parse_summary(const uint8_t *data, size_t size, const Id &log, uint64_t segment, Summary &out) {
  SummaryHeader header;
  if (size < sizeof header) return "it is shorter than its header";
  std::memcpy(&header, data, sizeof header);
  if (std::memcmp(header.magic, kMagic, 8) != 0) return "the magic is not GFTSUMRY";
  if (header.version != kVersion) return "its format version is another one";
  const uint8_t *body = data + sizeof header, *end = data + size;
  if (crc_of(header, body, size - sizeof header) != header.crc) return "its checksum does not hold";
  if (std::memcmp(header.log, log.data(), 16) != 0 || header.segment != segment) return "it is of another segment";
  if (header.limit < kPage || header.limit > kMaxSegment || header.limit % kPage) return "its limit is out of range";
  if (header.namespaces > kMaxNamespaces) return "it has too many namespaces";
  if (std::memchr(header.digest_name, 0, sizeof header.digest_name) == nullptr) return "its digest has no name";
  out = {};
  out.limit = header.limit;
  out.digest_name = header.digest_name;
  for (uint32_t i = 0; i < header.namespaces; ++i) {
    uint32_t bytes;
    if (static_cast<size_t>(end - body) < 8) return "it ends within a namespace";
    std::memcpy(&bytes, body, 4);
    size_t room = (4 + static_cast<size_t>(bytes) + 7) / 8 * 8;
    if (bytes == 0 || bytes > kMaxNamespace || room > static_cast<size_t>(end - body)) return "a namespace is out of range";
    out.namespaces.emplace_back(reinterpret_cast<const char *>(body + 4), bytes);
    body += room;
  }
  if (static_cast<size_t>(end - body) != size_t{header.records} * sizeof(SummaryEntry))
    return "its length is not that of its records";
  const DigestAlgorithm *digest = find_digest(header.digest_name);
  out.entries.resize(header.records);
  for (Entry &entry : out.entries) {
    SummaryEntry stored;
    std::memcpy(&stored, body, sizeof stored);
    body += sizeof stored;
    if (const char *why = take(stored, segment, header.limit, digest, entry)) return why;
  }
  return nullptr;
}

std::vector<uint8_t> build_summary(const Id &log, uint64_t segment, const Summary &summary) {
  SummaryHeader header{};
  std::memcpy(header.magic, kMagic, 8);
  header.version = kVersion;
  std::memcpy(header.log, log.data(), 16);
  header.segment = segment;
  header.limit = summary.limit;
  header.namespaces = static_cast<uint32_t>(summary.namespaces.size());
  header.records = static_cast<uint32_t>(summary.entries.size());
  std::strncpy(header.digest_name, summary.digest_name.c_str(), sizeof header.digest_name - 1);
  std::vector<uint8_t> out(sizeof header);
  for (const std::string &record : summary.namespaces) {
    auto bytes = static_cast<uint32_t>(record.size());
    size_t at = out.size();
    out.resize(at + (4 + record.size() + 7) / 8 * 8);
    std::memcpy(out.data() + at, &bytes, 4);
    std::memcpy(out.data() + at + 4, record.data(), record.size());
  }
  for (const Entry &entry : summary.entries) {
    SummaryEntry to{};
    std::memcpy(to.name_space, entry.key.name_space.data(), 16);
    std::memcpy(to.parent_link, entry.key.parent_link.data(), 16);
    std::memcpy(to.link, entry.key.link.data(), 16);
    std::memcpy(to.digest, entry.key.digest.data(), 16);
    to.position = entry.key.position;
    to.epoch = entry.key.epoch;
    to.payload_bytes = entry.key.payload_bytes;
    to.stored_bytes = entry.stored_bytes;
    to.shard = entry.key.shard;
    to.page = static_cast<uint32_t>(entry.offset / kPage);
    to.hash_bytes = static_cast<uint32_t>(entry.key.hash.size());
    to.codec = static_cast<uint32_t>(entry.codec);
    std::memcpy(to.hash, entry.key.hash.data(), std::min<size_t>(entry.key.hash.size(), kMaxHash));
    auto *bytes = reinterpret_cast<const uint8_t *>(&to);
    out.insert(out.end(), bytes, bytes + sizeof to);
  }
  header.crc = crc_of(header, out.data() + sizeof header, out.size() - sizeof header);
  std::memcpy(out.data(), &header, sizeof header);
  return out;
}

}  // namespace gft::disk
