// F_OFD_SETLK and F_OFD_GETLK behind names. Nothing here waits.
// A failed query counts as "locked": what may be alive is never given away.
#include "locks.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "../support/fail.h"
#include "../support/fork_guard.h"

namespace gft {
namespace {

struct flock range(short type, uint64_t byte, uint64_t count = 1) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(byte);
  lock.l_len = static_cast<off_t>(count);
  return lock;
}

}  // namespace

bool try_lock_byte(int descriptor, uint64_t byte, const char *path, uint64_t count) {
  struct flock lock = range(F_WRLCK, byte, count);
  while (fcntl(descriptor, F_OFD_SETLK, &lock) != 0) {
    if (errno == EAGAIN || errno == EACCES) return false;
    if (errno != EINTR)
      fail(GFT_IO, "cannot lock %s: %s; the arena needs a file system with open-file-description locks, such as tmpfs", path,
           std::strerror(errno));
  }
  return true;
}

bool try_share_byte(int descriptor, uint64_t byte) noexcept {
  struct flock lock = range(F_RDLCK, byte);
  int answer;
  do {
    answer = fcntl(descriptor, F_OFD_SETLK, &lock);
  } while (answer != 0 && errno == EINTR);
  return answer == 0;
}

bool is_locked(int descriptor, uint64_t byte, uint64_t count) noexcept {
  struct flock lock = range(F_WRLCK, byte, count);
  return fcntl(descriptor, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

LockFile::LockFile(int descriptor, const char *path) : fork_generation_(fork_generation()), path_(path) {
  char again[64];
  std::snprintf(again, sizeof again, "/proc/self/fd/%d", descriptor);
  // NOTE: opening the path again would reach another file if the arena was replaced meanwhile.
  descriptor_ = open_guarded(again, O_RDWR);
  if (descriptor_ < 0)
    fail(GFT_IO, "cannot open %s a second time for its lock: %s; /proc must be mounted and descriptors left", path,
         std::strerror(errno));
}

LockFile::~LockFile() { close_guarded(descriptor_, fork_generation_); }

bool LockFile::try_lock(uint64_t byte) { return try_lock_byte(descriptor_, byte, path_); }

void LockFile::unlock(uint64_t byte) noexcept {
  if (fork_generation_ != fork_generation()) return;
  struct flock lock = range(F_UNLCK, byte);
  (void)fcntl(descriptor_, F_OFD_SETLK, &lock);
}

}  // namespace gft
