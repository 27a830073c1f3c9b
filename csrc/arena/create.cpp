// The file grows under "<path>.new", locked by its creator, and is linked to its real name when it is complete.
// A creator that dies leaves ".new" unlocked; the next one takes it over, so nothing has to be cleaned up by hand.
#include "create.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../digest/crc32c.h"
#include "../digest/digest.h"
#include "../support/fail.h"
#include "../support/fork_guard.h"
#include "../support/free_memory.h"
#include "format.h"
#include "locks.h"

namespace gft {
namespace {

constexpr int kCreateSeconds = 120;  // zeroing 100 GB of tmpfs takes tens of seconds

struct Descriptor {
  int number;
  uint64_t made_in = fork_generation();
  ~Descriptor() {
    if (number >= 0) close_guarded(number, made_in);
  }
};

bool exists(const std::string &path) {
  struct stat status;
  return lstat(path.c_str(), &status) == 0;
}

// What the file system, and the memory behind it, still take.
FreeMemory free_room(const std::string &path) {
  constexpr long kTmpfs = 0x01021994;
  std::string folder = path.substr(0, path.find_last_of('/') + 1);
  struct statfs status;
  if (statfs(folder.empty() ? "." : folder.c_str(), &status) != 0) return {0, "on its file system"};
  FreeMemory room{uint64_t{status.f_bavail} * static_cast<uint64_t>(status.f_bsize), "on its file system"};
  if (status.f_type != kTmpfs) return room;
  FreeMemory memory = free_memory();
  return memory.bytes < room.bytes ? memory : room;
}

[[noreturn]] void no_space(const std::string &path, uint64_t wanted, FreeMemory room) {
  fail(GFT_NO_SPACE, "cannot allocate arena %s: %llu bytes wanted, %llu free %s; choose another directory or fewer slots",
       path.c_str(), (unsigned long long)wanted, (unsigned long long)room.bytes, room.limit);
}

void allocate(int descriptor, const std::string &path, uint64_t bytes) {
  if (ftruncate(descriptor, 0) != 0) fail(GFT_IO, "cannot empty %s.new: %s; remove it", path.c_str(), std::strerror(errno));
  // Asked before, because filling a memory file system to the brim would hurt everybody else on the machine.
  if (FreeMemory room = free_room(path); room.bytes < bytes) no_space(path, bytes, room);
  while (fallocate(descriptor, 0, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    int error = errno;
    (void)!ftruncate(descriptor, 0);
    if (error == ENOSPC || error == EFBIG || error == ENOMEM || error == EDQUOT) no_space(path, bytes, free_room(path));
    fail(GFT_IO, "cannot allocate %llu bytes for arena %s: %s; use a directory on tmpfs, such as /dev/shm",
         (unsigned long long)bytes, path.c_str(), std::strerror(error));
  }
}

void write_header(int descriptor, const std::string &path, const Geometry &geometry) {
  FileHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kFormatVersion;
  header.header_bytes = sizeof header;
  header.slot_bytes = geometry.slot_bytes;
  header.slots = geometry.slots;
  header.ledger_bytes = geometry.ledger_bytes;
  header.file_bytes = geometry.file_bytes;
  std::strncpy(header.digest_name, preferred_digest().name, sizeof header.digest_name - 1);
  if (getrandom(header.arena_id, sizeof header.arena_id, 0) != sizeof header.arena_id)
    fail(GFT_IO, "cannot draw an identity for arena %s: %s", path.c_str(), std::strerror(errno));
  header.crc = crc32c(&header, offsetof(FileHeader, crc));
  for (size_t done = 0; done < sizeof header;) {  // a short write is no error yet
    ssize_t wrote = pwrite(descriptor, reinterpret_cast<const char *>(&header) + done, sizeof header - done,
                           static_cast<off_t>(done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0)
      fail(GFT_IO, "cannot write the header of arena %s: %s", path.c_str(),
           wrote == 0 ? "nothing is written" : std::strerror(errno));
    done += static_cast<size_t>(wrote);
  }
}

// Whether `descriptor` is still what the name says: the former creator may have renamed or removed it while we waited.
bool still_named(int descriptor, const std::string &name) {
  struct stat ours, named;
  return fstat(descriptor, &ours) == 0 && lstat(name.c_str(), &named) == 0 && ours.st_dev == named.st_dev &&
         ours.st_ino == named.st_ino && ours.st_nlink == 1;
}

void publish(const std::string &fresh, const std::string &path, bool &published) {
  published = link(fresh.c_str(), path.c_str()) == 0;
  int error = errno;
  (void)unlink(fresh.c_str());
  if (!published && error != EEXIST)
    fail(GFT_IO, "cannot publish arena %s: %s; use a directory on tmpfs, such as /dev/shm", path.c_str(),
         std::strerror(error));
}

}  // namespace

bool create_arena_file(const std::string &path, const Geometry &geometry) {
  std::string fresh = path + ".new";
  struct timespec start, now, nap = {0, 2'000'000};
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (;;) {
    if (exists(path)) return false;
    Descriptor file{open_guarded(fresh.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW, 0600)};
    if (file.number < 0)
      fail(errno == ENOSPC ? GFT_NO_SPACE : GFT_IO, "cannot create arena %s: %s; its directory must exist and be writable",
           path.c_str(), std::strerror(errno));
    struct stat status;
    if (fstat(file.number, &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != geteuid() ||
        (status.st_mode & 077) != 0)
      fail(GFT_INVALID, "cannot create arena %s: %s exists and is not a private file of this user; remove it", path.c_str(),
           fresh.c_str());
    if (try_lock_byte(file.number, kCreateLock, fresh.c_str()) && still_named(file.number, fresh)) {
      // The file may have been published and unlinked by another creator between our look and our lock.
      if (exists(path)) {
        (void)unlink(fresh.c_str());
        return false;
      }
      bool published = false;
      try {
        allocate(file.number, path, geometry.file_bytes);
        write_header(file.number, path, geometry);
      } catch (...) {
        (void)unlink(fresh.c_str());
        throw;
      }
      publish(fresh, path, published);
      return published;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec - start.tv_sec > kCreateSeconds)
      fail(GFT_TIMED_OUT, "another process has been creating arena %s for more than %d s; see who has %s open, or remove it",
           path.c_str(), kCreateSeconds, fresh.c_str());
    nanosleep(&nap, nullptr);
  }
}

}  // namespace gft
