// Segment files as descriptors: made with all their room, opened with their header checked, few of them open at a time.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "../digest/digest.h"
#include "folder.h"
#include "parse.h"

namespace gft::disk {

struct SegmentFile {
  uint64_t number = 0;
  File file;
  bool direct = false;
  SegmentHeader header{};
  const DigestAlgorithm *digest = nullptr;  // null: this build lacks it

  int descriptor() const { return file.get(); }
  Id log() const { return std::to_array(header.log); }
  // Bytes that exist now, in whole pages.
  uint64_t bytes() const { return file.size() / kPage * kPage; }
};
using SegmentRef = std::shared_ptr<SegmentFile>;

// Allocated, header durable. Throws GFT_NO_SPACE, GFT_IO, ...; what was made is removed then.
SegmentRef make_segment(const Folder &folder, const Id &log, uint64_t number, uint64_t bytes, const DigestAlgorithm &digest,
                        bool direct);
// Throws GFT_NOT_FOUND, GFT_IO, GFT_DAMAGED (the header does not hold). `log` null: any.
SegmentRef open_segment(const Folder &folder, const Id *log, uint64_t number, bool direct);

// Keeps the segments used last open.
class SegmentFiles {
 public:
  SegmentFiles(const Folder &folder, bool direct) : folder_(folder), direct_(direct) {}
  SegmentRef get(const Id &log, uint64_t number);
  void add(SegmentRef file);
  void forget(uint64_t number);
  bool direct() const { return direct_works_; }  // as the last opened segment showed

 private:
  const Folder &folder_;
  const bool direct_;
  std::atomic<bool> direct_works_{true};
  std::mutex mutex_;
  std::list<SegmentRef> recent_;  // front: used last
};

}  // namespace gft::disk
