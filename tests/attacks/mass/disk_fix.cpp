// What a forger does after a change to the files of a disk log: checksums and chunk digests fit whatever they now say.
// The places are those of csrc/disk/README.md, worked out apart from the core on purpose.
#include "disk_fix.h"

#include <algorithm>
#include <cstring>

#include "../../../csrc/gft.h"
#include "crc32c.h"

namespace mass {
namespace {

constexpr size_t kLink = 80, kStored = 136, kChunkBytes = 232, kChunks = 236, kTable = 240, kMostChunks = 128;
constexpr size_t kNamed = 72, kMostNamed = 480;  // of a commit

template <typename T>
T get(const uint8_t *at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <typename T>
void put(uint8_t *at, T value) {
  std::memcpy(at, &value, sizeof value);
}
uint32_t crc_of(const uint8_t *page) { return get<uint32_t>(page + kDiskPage - 4); }

}  // namespace

void fix_page(uint8_t *page) {
  uint32_t crc = crc32c(page, kDiskPage - 4);
  std::memcpy(page + kDiskPage - 4, &crc, 4);
}

void fix_whole(std::vector<uint8_t> &file) {
  if (file.size() < 16) return;
  size_t bytes = file.size();
  uint64_t segments = 0;
  if (std::memcmp(file.data(), "GFTSUPER", 8) == 0 && bytes >= 56) {
    std::memcpy(&segments, file.data() + 48, 8);
    if (segments <= (bytes - 56) / 24) bytes = 56 + segments * 24;
  }
  std::memset(file.data() + 12, 0, 4);
  uint32_t crc = crc32c(file.data(), bytes);
  std::memcpy(file.data() + 12, &crc, 4);
}

void fix_record(std::vector<uint8_t> &segment, uint64_t offset) {
  if (offset > segment.size() || segment.size() - offset < kDiskPage) return;
  uint8_t *page = segment.data() + offset;
  uint64_t stored = get<uint64_t>(page + kStored), chunk = kDiskPage;
  if (stored <= segment.size() - offset - kDiskPage) {
    while (stored > chunk * kMostChunks) chunk *= 2;
    uint64_t count = 0;
    for (uint64_t at = 0; at < stored; at += chunk, ++count) {
      std::vector<uint8_t> bound(page + kLink, page + kLink + 16);
      bound.resize(24);
      put(bound.data() + 16, count);
      const uint8_t *piece = page + kDiskPage + at;
      bound.insert(bound.end(), piece, piece + std::min(chunk, stored - at));
      gft_digest(bound.data(), bound.size(), page + kTable + 16 * count);
    }
    put(page + kChunkBytes, static_cast<uint32_t>(chunk));
    put(page + kChunks, static_cast<uint32_t>(count));
  }
  fix_page(page);
  fix_commits(segment);
}

void fix_commits(std::vector<uint8_t> &segment) {
  if (segment.size() < kDiskPage) return;
  uint32_t previous = crc_of(segment.data());
  for (uint64_t at = kDiskPage; at + kDiskPage <= segment.size(); at += kDiskPage) {
    uint8_t *page = segment.data() + at;
    if (std::memcmp(page, "GFTCOMIT", 8) != 0) continue;
    for (uint32_t i = 0, records = get<uint32_t>(page + 12); i < records && i < kMostNamed; ++i) {
      uint64_t named = uint64_t{get<uint32_t>(page + kNamed + 8 * i)} * kDiskPage;
      if (named + kDiskPage <= segment.size()) put(page + kNamed + 8 * i + 4, crc_of(segment.data() + named));
    }
    put(page + 64, previous);
    fix_page(page);
    previous = crc_of(page);
  }
}

}  // namespace mass
