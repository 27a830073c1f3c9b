// Checksums and digests made to fit changed files of a disk log, as a liar who can compute them would.
// Shared by the mass faults and the fuzz targets.
#pragma once

#include <cstdint>
#include <vector>

namespace mass {

inline constexpr uint64_t kDiskPage = 4096;

void fix_page(uint8_t *page);                                         // of a segment
void fix_whole(std::vector<uint8_t> &file);                           // superblock or summary
void fix_record(std::vector<uint8_t> &segment, uint64_t offset);      // chunk table, header, and the commits that name it
void fix_commits(std::vector<uint8_t> &segment);

}  // namespace mass
