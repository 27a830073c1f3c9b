// open, list, remove and sync in one folder; errno becomes a status with words here and nowhere else.
// A file that is not a plain file of this user, closed to others, is refused whatever it holds.
#include "folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "../support/fail.h"
#include "../support/fork_guard.h"

namespace gft::disk {
namespace {

std::string numbered(const char *format, uint64_t high, uint64_t low) {
  char text[64];
  std::snprintf(text, sizeof text, format, (unsigned long long)high, (unsigned long long)low);
  return text;
}

void check_owner(const struct stat &status, const char *path, bool read_only) {
  if (status.st_uid != geteuid() && !(read_only && geteuid() == 0))
    fail(GFT_INVALID, "%s belongs to user %u, we are user %u; only its owner may use it", path, status.st_uid, geteuid());
  if (status.st_mode & 077)
    fail(GFT_INVALID, "%s has mode %03o and is open to others; chmod go= it when you trust what is in it", path,
         status.st_mode & 0777);
}

}  // namespace

std::string super_name(uint64_t term, char copy) {
  return numbered("super-%08llx", term, 0) + (copy == 'a' ? "-a" : "-b");
}
std::string segment_name(uint64_t segment) { return numbered("seg-%08llx-%08llx", segment >> 32, segment & 0xffffffff); }
std::string summary_name(uint64_t segment) { return numbered("sum-%08llx-%08llx", segment >> 32, segment & 0xffffffff); }

gft_status status_of(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return GFT_NO_SPACE;
    case EROFS:
    case EACCES:
    case EPERM:
      return GFT_READ_ONLY;
    case ENOENT:
      return GFT_NOT_FOUND;
    case EEXIST:
      return GFT_EXISTS;
    default:
      return GFT_IO;
  }
}

void fail_io(const char *what, const std::string &path, int error) {
  const char *remedy = "see the kernel's log about this disk, or use another folder";
  gft_status status = status_of(error);
  if (status == GFT_NO_SPACE) remedy = "free room, lower the cap, or raise the limit on file sizes (ulimit -f)";
  if (status == GFT_READ_ONLY) remedy = "make the folder writable for this user, or use another folder";
  fail(status, "cannot %s %s: %s; %s", what, path.c_str(), std::strerror(error), remedy);
}

File::File(File &&other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)), made_in_(other.made_in_) {}
File &File::operator=(File &&other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(made_in_, other.made_in_);
  return *this;
}
File::~File() {
  if (descriptor_ >= 0) close_guarded(descriptor_, made_in_);
}
uint64_t File::size() const {
  struct stat status;
  return fstat(descriptor_, &status) == 0 && status.st_size > 0 ? static_cast<uint64_t>(status.st_size) : 0;
}

Folder::Folder(std::string path_, bool make, bool read_only) : path(std::move(path_)), read_only_(read_only) {
  if (path.empty()) fail(GFT_INVALID, "the disk log's folder has no name");
  for (size_t at = 1; make && at != std::string::npos;) {
    at = path.find('/', at + 1);
    if (mkdir(path.substr(0, at).c_str(), 0700) != 0 && errno != EEXIST && at == std::string::npos)
      fail_io("make the folder", path, errno);
  }
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) fail(GFT_NOT_FOUND, "no disk log at %s; check the path", path.c_str());
    fail_io("look at", path, errno);
  }
  if (!S_ISDIR(status.st_mode)) fail(GFT_INVALID, "%s is not a folder; a disk log needs one of its own", path.c_str());
  check_owner(status, path.c_str(), read_only);
}

File Folder::open(const std::string &name, int flags) const {
  std::string full = path_of(name);
  uint64_t made_in = fork_generation();
  int descriptor = open_guarded(full.c_str(), flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
  if (descriptor < 0) {
    if (errno == ELOOP) fail(GFT_INVALID, "%s is a symbolic link; links are not followed: remove it", full.c_str());
    if (errno == EINVAL && (flags & O_DIRECT)) return {};
    fail_io("open", full, errno);
  }
  File file(descriptor, made_in);
  struct stat status;
  if (fstat(descriptor, &status) != 0) fail_io("look at", full, errno);
  if (!S_ISREG(status.st_mode)) fail(GFT_INVALID, "%s is not a plain file; remove it", full.c_str());
  check_owner(status, full.c_str(), read_only_);
  return file;
}

bool Folder::exists(const std::string &name) const {
  struct stat status;
  return lstat(path_of(name).c_str(), &status) == 0 || errno != ENOENT;
}

bool Folder::is(const std::string &name, const File &file) const {
  struct stat there, ours;
  return lstat(path_of(name).c_str(), &there) == 0 && fstat(file.get(), &ours) == 0 && there.st_ino == ours.st_ino &&
         there.st_dev == ours.st_dev;
}

void Folder::remove(const std::string &name) const noexcept { (void)unlink(path_of(name).c_str()); }

uint64_t Folder::free_bytes() const noexcept {
  struct statvfs status;
  return statvfs(path.c_str(), &status) == 0 ? uint64_t{status.f_bavail} * status.f_frsize : UINT64_MAX;
}

void Folder::sync() const {
  uint64_t made_in = fork_generation();
  File folder(open_guarded(path.c_str(), O_RDONLY | O_DIRECTORY), made_in);
  if (!folder || fsync(folder.get()) != 0) fail_io("sync the folder", path, errno);
}

std::vector<std::string> Folder::names() const {
  std::vector<std::string> out;
  DIR *all = opendir(path.c_str());
  if (!all) fail_io("list", path, errno);
  while (const dirent *each = readdir(all)) out.emplace_back(each->d_name);
  closedir(all);
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<uint8_t> read_small(const File &file, const std::string &name, uint64_t most) {
  std::vector<uint8_t> out(std::min(file.size(), most));
  size_t got = 0;
  while (got < out.size()) {
    ssize_t part = pread(file.get(), out.data() + got, out.size() - got, static_cast<off_t>(got));
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) fail_io("read", name, errno);
    if (part == 0) break;
    got += static_cast<size_t>(part);
  }
  out.resize(got);
  return out;
}

void write_at(const File &file, const std::string &name, const void *data, size_t bytes, uint64_t offset) {
  auto *from = static_cast<const uint8_t *>(data);
  while (bytes > 0) {
    ssize_t part = pwrite(file.get(), from, bytes, static_cast<off_t>(offset));
    if (part < 0 && errno == EINTR) continue;
    if (part <= 0) fail_io("write", name, part < 0 ? errno : EIO);
    from += part;
    bytes -= static_cast<size_t>(part);
    offset += static_cast<uint64_t>(part);
  }
}

void sync_data(const File &file, const std::string &name) {
  if (fdatasync(file.get()) != 0) fail_io("sync", name, errno);
}

}  // namespace gft::disk
