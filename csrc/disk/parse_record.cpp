// Reads and writes the header page of a record: a block's identity, and the digests of what is stored behind it.
// An identity that contradicts its own link is refused here, before anybody looks at the payload.
#include <algorithm>
#include <cstring>

#include "../arena/core.h"
#include "../digest/crc32c.h"
#include "parse.h"

namespace gft::disk {
namespace {

constexpr char kMagic[9] = "GFTRECRD";

template <size_t N>
Id id_of(const uint8_t (&bytes)[N]) {
  static_assert(N == 16);
  return std::to_array(bytes);
}

}  // namespace

uint64_t Record::bytes() const { return record_bytes(entry.stored_bytes); }

Id link_of(const Key &key, const DigestAlgorithm &digest) {
  SlotHeader header{};  // the arena's own rule, so that blocks keep their links on the way
  header.epoch = key.epoch;
  header.shard = key.shard;
  header.position = key.position;
  header.hash_bytes = static_cast<uint32_t>(key.hash.size());
  std::memcpy(header.hash, key.hash.data(), std::min<size_t>(key.hash.size(), sizeof header.hash));
  std::memcpy(header.name_space_id, key.name_space.data(), 16);
  std::memcpy(header.parent_link, key.parent_link.data(), 16);
  std::memcpy(header.digest, key.digest.data(), 16);
  return Core::link_of(digest, header);
}

Id chunk_digest(const DigestAlgorithm &digest, const Id &link, uint64_t index, const uint8_t *data, size_t bytes) {
  DigestState state;
  Id out;
  digest.start(state);
  digest.update(state, link.data(), link.size());
  digest.update(state, &index, sizeof index);
  digest.update(state, data, bytes);
  digest.finish(state, out.data());
  return out;
}

const char *check_key(const Key &key, const DigestAlgorithm &digest) {
  if (key.hash.empty() || key.hash.size() > kMaxHash) return "the hash must have 1 to 64 bytes";
  if (key.payload_bytes == 0) return "the payload is empty";
  if (key.position == 0 && key.parent_link != key.name_space) return "a block at position 0 has its namespace as parent link";
  if (link_of(key, digest) != key.link) return "the link is not the digest of the identity";
  return nullptr;
}

const char *parse_record(const uint8_t *data, size_t size, const Place &place, const DigestAlgorithm &digest, Record &out) {
  if (size < sizeof(RecordHeader)) return "it is shorter than a header page";
  RecordHeader header;
  std::memcpy(&header, data, sizeof header);
  if (std::memcmp(header.magic, kMagic, 8) != 0) return "the magic is not GFTRECRD";
  if (header.version != kVersion) return "its format version is another one";
  if (crc32c(&header, offsetof(RecordHeader, crc)) != header.crc) return "its header's checksum does not hold";
  if (id_of(header.log) != place.log || header.segment != place.segment || header.offset != place.offset)
    return "its header belongs to another place";
  if (place.offset % kPage || place.offset < kPage || place.offset > place.limit) return "its place is out of range";
  uint64_t room = place.limit - place.offset;
  if (room < kPage || header.stored_bytes == 0 || header.stored_bytes > kMaxSegment ||
      record_bytes(header.stored_bytes) > room)
    return "it is longer than its segment";
  if (header.kind < 1 || header.kind > 2) return "it is of no known kind";
  if (header.codec > static_cast<uint16_t>(Codec::lz4)) return "its codec is unknown";
  if (header.hash_bytes > kMaxHash) return "its hash is too long";
  // Unpacked it fitted into a segment once; nothing larger is believed, whatever it claims.
  if (header.payload_bytes == 0 || header.payload_bytes > kMaxSegment) return "its payload is out of range";
  if (header.codec == 0 ? header.payload_bytes != header.stored_bytes : header.payload_bytes <= header.stored_bytes)
    return "its lengths contradict each other";
  uint64_t chunk = chunk_for(header.stored_bytes);
  if (header.chunk_bytes != chunk || header.chunks != (header.stored_bytes + chunk - 1) / chunk)
    return "its chunks do not cover it";
  if (std::memchr(header.digest_name, 0, sizeof header.digest_name) == nullptr ||
      std::strcmp(header.digest_name, digest.name) != 0)
    return "its digest is not its segment's";
  out.kind = static_cast<Kind>(header.kind);
  out.crc = header.crc;
  out.chunk_bytes = header.chunk_bytes;
  out.chunks = header.chunks;
  out.chunk_digests.assign(header.chunks, {});
  std::memcpy(out.chunk_digests.data(), header.chunk_digests, header.chunks * sizeof(Id));
  Entry &entry = out.entry;
  entry.segment = place.segment;
  entry.offset = place.offset;
  entry.stored_bytes = header.stored_bytes;
  entry.codec = static_cast<Codec>(header.codec);
  entry.key = {id_of(header.name_space),
               header.shard,
               header.position,
               header.epoch,
               header.payload_bytes,
               std::string(reinterpret_cast<const char *>(header.hash), header.hash_bytes),
               id_of(header.parent_link),
               id_of(header.link),
               id_of(header.digest)};
  if (out.kind == Kind::block) return check_key(entry.key, digest);
  if (header.codec != 0) return "only blocks are compressed";
  if (header.payload_bytes > kMaxNamespace) return "its namespace record is too long";
  return nullptr;
}

void build_record(Kind kind, Codec codec, const Key &key, const uint8_t *stored, uint64_t stored_bytes,
                  const DigestAlgorithm &digest, uint8_t *page) {
  auto &header = *reinterpret_cast<RecordHeader *>(page);
  header = {};
  std::memcpy(header.magic, kMagic, 8);
  header.version = kVersion;
  header.kind = static_cast<uint16_t>(kind);
  header.codec = static_cast<uint16_t>(codec);
  std::memcpy(header.name_space, key.name_space.data(), 16);
  std::memcpy(header.parent_link, key.parent_link.data(), 16);
  std::memcpy(header.link, key.link.data(), 16);
  std::memcpy(header.digest, key.digest.data(), 16);
  header.position = key.position;
  header.epoch = key.epoch;
  header.payload_bytes = key.payload_bytes;
  header.stored_bytes = stored_bytes;
  header.shard = key.shard;
  header.hash_bytes = static_cast<uint32_t>(key.hash.size());
  std::memcpy(header.hash, key.hash.data(), std::min<size_t>(key.hash.size(), sizeof header.hash));
  std::strncpy(header.digest_name, digest.name, sizeof header.digest_name - 1);
  uint64_t chunk = chunk_for(stored_bytes);
  header.chunk_bytes = static_cast<uint32_t>(chunk);
  for (uint64_t at = 0; at < stored_bytes; at += chunk) {
    if (!stored) {  // the caller fills the digests in while it copies
      header.chunks = static_cast<uint32_t>((stored_bytes + chunk - 1) / chunk);
      break;
    }
    Id piece = chunk_digest(digest, key.link, header.chunks, stored + at, std::min(chunk, stored_bytes - at));
    std::memcpy(header.chunk_digests[header.chunks++], piece.data(), 16);
  }
}

uint32_t place_record(const Place &place, uint8_t *page) {
  auto &header = *reinterpret_cast<RecordHeader *>(page);
  std::memcpy(header.log, place.log.data(), 16);
  header.segment = place.segment;
  header.offset = place.offset;
  return header.crc = crc32c(&header, offsetof(RecordHeader, crc));
}

}  // namespace gft::disk
