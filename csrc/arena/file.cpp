// Opening, checking and mapping an arena file. The header is copied out before it is believed,
// its geometry goes through the same range checks as a creator's, and must give exactly the length the file has.
#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "../digest/crc32c.h"
#include "../support/fail.h"
#include "../support/fork_guard.h"
#include "create.h"

namespace gft {
namespace {
constexpr uint64_t kGuard = uint64_t{2} << 20;  // also the size of a large page, to which the mapping is aligned
constexpr int kMadvisePopulateRead = 22;        // since Linux 5.14; older C libraries do not name it
}  // namespace

ArenaFile::ArenaFile(std::string path_, bool read_only_, int descriptor_)
    : path(std::move(path_)), read_only(read_only_), descriptor(descriptor_), fork_generation(gft::fork_generation()) {}

ArenaFile::~ArenaFile() {
  if (reserved_) munmap(reserved_, reserved_bytes_);
  close_guarded(descriptor, fork_generation);
}

std::unique_ptr<ArenaFile> ArenaFile::create(const std::string &path, const Geometry &geometry, Mode mode) {
  if (path.empty() || path.back() == '/') fail(GFT_INVALID, "arena path \"%s\" does not name a file", path.c_str());
  if (!create_arena_file(path, geometry) && mode == Mode::create)
    fail(GFT_EXISTS, "arena %s exists; open it, or remove it first", path.c_str());
  auto file = open(path, false);
  if (file->geometry.slot_bytes != geometry.slot_bytes)
    fail(GFT_MISMATCH,
         "arena %s has slots of %llu bytes, %llu are wanted; the engine's model, layout or block size changed: "
         "use another path or remove the file",
         path.c_str(), (unsigned long long)file->geometry.slot_bytes, (unsigned long long)geometry.slot_bytes);
  return file;
}

std::unique_ptr<ArenaFile> ArenaFile::open(const std::string &path, bool read_only) {
  int descriptor = open_guarded(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) {
    if (errno == ENOENT) fail(GFT_NOT_FOUND, "no arena at %s; create it, or check the path", path.c_str());
    fail(GFT_IO, "cannot open arena %s: %s; it must be a plain file of this user", path.c_str(), std::strerror(errno));
  }
  std::unique_ptr<ArenaFile> file(new ArenaFile(path, read_only, descriptor));
  file->read_header();
  file->map();
  return file;
}

void ArenaFile::read_header() {
  const char *name = path.c_str();
  struct stat status;
  if (fstat(descriptor, &status) != 0) fail(GFT_IO, "cannot look at arena %s: %s", name, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(GFT_INVALID, "arena %s is not a plain file", name);
  if (status.st_uid != geteuid() && !(read_only && geteuid() == 0))
    fail(GFT_INVALID, "arena %s belongs to user %u, we are user %u; only its owner may use it", name, status.st_uid,
         geteuid());
  if ((status.st_mode & 077) != 0)
    fail(GFT_INVALID,
         "arena %s has mode %03o; others could change it under us, it must be 600: remove it, or chmod 600 "
         "when you trust what is in it",
         name, status.st_mode & 0777);
  FileHeader header;
  ssize_t got = pread(descriptor, &header, sizeof header, 0);
  if (got != sizeof header)
    fail(GFT_DAMAGED, "arena %s is damaged at byte 0: %lld bytes long, shorter than its header; remove it", name,
         (long long)status.st_size);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    fail(GFT_DAMAGED, "%s is not an arena: its first eight bytes are not the magic; remove it or choose another path", name);
  if (header.version != kFormatVersion)
    fail(GFT_VERSION, "arena %s has format version %u, this build reads %u; remove it, or use the build that made it", name,
         header.version, kFormatVersion);
  if (header.crc != crc32c(&header, offsetof(FileHeader, crc)) || header.header_bytes != sizeof header)
    fail(GFT_DAMAGED, "arena %s is damaged at byte 0: the header's checksum does not hold; remove it", name);
  try {
    geometry = Geometry::of(header.slot_bytes, header.slots, header.ledger_bytes);
  } catch (const Fail &why) {
    fail(GFT_DAMAGED, "arena %s is damaged at byte 16: %s; remove it", name, why.text.c_str());
  }
  if (header.file_bytes != geometry.file_bytes || static_cast<uint64_t>(status.st_size) != geometry.file_bytes)
    fail(GFT_DAMAGED,
         "arena %s is damaged: its geometry needs %llu bytes, its header says %llu, the file has %lld; remove it", name,
         (unsigned long long)geometry.file_bytes, (unsigned long long)header.file_bytes, (long long)status.st_size);
  header.digest_name[sizeof header.digest_name - 1] = 0;
  digest = find_digest(header.digest_name);
  if (!digest)
    fail(GFT_MISMATCH,
         "arena %s was sealed with digest \"%s\", which this build lacks; build with <xxhash.h> installed "
         "(libxxhash-dev), or remove the arena",
         name, header.digest_name);
  std::memcpy(id, header.arena_id, sizeof id);
}

void ArenaFile::map() {
  // Pages without access on both sides: a step outside the mapping is a fault and never somebody else's memory.
  reserved_bytes_ = geometry.file_bytes + 2 * kGuard;
  void *reserved = mmap(nullptr, reserved_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void *at = MAP_FAILED;
  if (reserved != MAP_FAILED) {
    reserved_ = static_cast<uint8_t *>(reserved);
    uint8_t *aligned = reserved_ + kGuard - reinterpret_cast<uint64_t>(reserved_) % kGuard;
    at = mmap(aligned, geometry.file_bytes, read_only ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
              descriptor, 0);
  }
  if (at == MAP_FAILED)
    fail(GFT_IO, "cannot map arena %s (%llu bytes): %s; check the address space limit (ulimit -v)", path.c_str(),
         (unsigned long long)geometry.file_bytes, std::strerror(errno));
  base = static_cast<uint8_t *>(at);
  faulted_ = std::make_unique<std::atomic<bool>[]>(geometry.file_bytes / kWindow + 1);
  // Hints only: keep hundreds of gigabytes out of core dumps, and use large pages where the system allows them.
  (void)madvise(base, geometry.file_bytes, MADV_DONTDUMP);
  (void)madvise(base, geometry.file_bytes, MADV_HUGEPAGE);
}

void ArenaFile::prefault(uint64_t offset, uint64_t bytes) noexcept {
  for (uint64_t window = offset / kWindow; window <= (offset + bytes - 1) / kWindow; ++window) {
    if (faulted_[window].load(std::memory_order_relaxed) || faulted_[window].exchange(true, std::memory_order_relaxed))
      continue;
    uint64_t at = window * kWindow;
    // NOTE: for shared memory files, populating for reading makes the pages writable too, and is four times faster.
    (void)madvise(base + at, std::min(kWindow, geometry.file_bytes - at), kMadvisePopulateRead);
  }
}

void ArenaFile::check_alive() const {
  if (fork_generation != gft::fork_generation())
    fail(GFT_FORKED, "arena %s was opened by the parent of this forked process; open it again here", path.c_str());
  struct stat status;
  if (fstat(descriptor, &status) != 0 || static_cast<uint64_t>(status.st_size) < geometry.file_bytes)
    fail(GFT_DAMAGED, "arena %s was cut to %lld bytes while in use, it needs %llu; remove it and start again", path.c_str(),
         (long long)status.st_size, (unsigned long long)geometry.file_bytes);
}

}  // namespace gft
