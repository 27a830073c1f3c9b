// Making, opening and keeping segment files.
// O_DIRECT is asked for where wanted; a file system that refuses it is used through its cache.
#include "segment.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../support/fail.h"

namespace gft::disk {
namespace {

constexpr size_t kKeptOpen = 64;

File open_file(const Folder &folder, const std::string &name, int flags, bool &direct) {
  if (direct) {
    File file = folder.open(name, flags | O_DIRECT);
    if (file) return file;
    direct = false;
    if (flags & O_EXCL) folder.remove(name);  // some file systems make the file before they refuse the flag
  }
  return folder.open(name, flags);
}

void allocate(const File &file, const std::string &path, uint64_t bytes) {
  int error;
  do {
    error = fallocate(file.get(), 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  // A file system without it: writes may then meet a full disk, which ends appends as any other failure does.
  if (error == EOPNOTSUPP || error == ENOSYS) error = ftruncate(file.get(), static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  if (error) fail_io("make a segment", path, error);
}

}  // namespace

SegmentRef make_segment(const Folder &folder, const Id &log, uint64_t number, uint64_t bytes, const DigestAlgorithm &digest,
                        bool direct) {
  std::string name = segment_name(number), path = folder.path_of(name);
  auto out = std::make_shared<SegmentFile>();
  out->number = number;
  out->digest = &digest;
  out->direct = direct;
  out->file = open_file(folder, name, O_RDWR | O_CREAT | O_EXCL, out->direct);
  try {
    allocate(out->file, path, bytes);
    alignas(kPage) uint8_t page[kPage];
    build_segment_header(log, number, bytes, digest.name, page);
    std::memcpy(&out->header, page, sizeof page);
    write_at(out->file, path, page, sizeof page, 0);
    if (fsync(out->descriptor()) != 0) fail_io("sync", path, errno);
    folder.sync();
  } catch (const Fail &) {
    folder.remove(name);
    throw;
  }
  return out;
}

SegmentRef open_segment(const Folder &folder, const Id *log, uint64_t number, bool direct) {
  std::string name = segment_name(number), path = folder.path_of(name);
  auto out = std::make_shared<SegmentFile>();
  out->number = number;
  out->direct = direct;
  out->file = open_file(folder, name, O_RDONLY, out->direct);
  alignas(kPage) uint8_t page[kPage];
  ssize_t got = pread(out->descriptor(), page, sizeof page, 0);
  if (got < 0) fail_io("read", path, errno);
  if (const char *why = parse_segment_header(page, static_cast<size_t>(got), log, number, out->header))
    fail(GFT_DAMAGED, "%s is no segment of this log: %s; its blocks are recomputed", path.c_str(), why);
  out->digest = find_digest(out->header.digest_name);
  return out;
}

SegmentRef SegmentFiles::get(const Id &log, uint64_t number) {
  {
    std::lock_guard lock(mutex_);
    for (auto at = recent_.begin(); at != recent_.end(); ++at)
      if ((*at)->number == number) {
        recent_.splice(recent_.begin(), recent_, at);
        return recent_.front();
      }
  }
  auto file = open_segment(folder_, &log, number, direct_);
  add(file);
  return file;
}

void SegmentFiles::add(SegmentRef file) {
  direct_works_ = file->direct;
  std::lock_guard lock(mutex_);
  recent_.push_front(std::move(file));
  if (recent_.size() > kKeptOpen) recent_.pop_back();
}

void SegmentFiles::forget(uint64_t number) {
  std::lock_guard lock(mutex_);
  recent_.remove_if([&](const SegmentRef &each) { return each->number == number; });
}

}  // namespace gft::disk
