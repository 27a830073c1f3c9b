// Terms by file names that must not exist yet, locks by open-file-description locks on bytes named by the term.
// The kernel arbitrates both; nothing in the lock file's contents is believed.
#include "lease.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "../support/fail.h"

namespace gft::disk {
namespace {

constexpr uint64_t kMostSuperBytes = sizeof(SuperHeader) + uint64_t{kMaxSegments} * sizeof(SuperEntry);

// The term of a superblock's or segment's name; 0 for other names.
uint64_t term_of(const std::string &name) {
  unsigned long long term = 0, number = 0;
  char copy = 0;
  if (std::sscanf(name.c_str(), "super-%8llx-%c", &term, &copy) == 2 && name == super_name(term, copy)) return term;
  if (std::sscanf(name.c_str(), "seg-%8llx-%8llx", &term, &number) == 2 && name == segment_name(term << 32 | number))
    return term;
  return 0;
}

uint64_t highest_term(const std::vector<std::string> &names) {
  uint64_t highest = 0;
  for (const std::string &name : names) highest = std::max(highest, term_of(name));
  return highest;
}

}  // namespace

std::optional<Super> newest_super(const Folder &folder, uint64_t &highest) {
  auto names = folder.names();
  highest = highest_term(names);
  std::optional<Super> newest;
  for (const std::string &name : names) {
    if (!name.starts_with("super-") || term_of(name) == 0) continue;
    try {
      File file = folder.open(name, O_RDONLY);
      Super super;
      auto bytes = read_small(file, folder.path_of(name), kMostSuperBytes);
      if (parse_super(bytes.data(), bytes.size(), super) || super.term != term_of(name)) continue;
      if (!newest || std::pair(super.term, super.generation) > std::pair(newest->term, newest->generation))
        newest = std::move(super);
    } catch (const Fail &why) {
      if (why.code == GFT_INTERNAL) throw;  // else: removed meanwhile, or not to be used
    }
  }
  return newest;
}

Pulse read_pulse(const File &lock) {
  Pulse pulse{};
  if (pread(lock.get(), &pulse, sizeof pulse, 0) != sizeof pulse) pulse = {};
  return pulse;
}

Lease::Lease(const Folder &folder, bool takeover) : folder_(folder) {
  lock_ = folder.open("lock", O_RDWR | O_CREAT);
  std::string path = folder.path_of("lock");
  for (int attempt = 0; attempt < 16; ++attempt) {
    uint64_t highest = highest_term(folder.names());
    if (highest >= kTerms)
      fail(GFT_DAMAGED, "the disk log %s has a file of term %llx; terms go up to %llx: remove what does not belong there",
           folder.path.c_str(), (unsigned long long)highest, (unsigned long long)kTerms);
    if (!takeover && highest && is_locked(lock_.get(), kLockBase + highest))
      fail(GFT_BUSY, "process %llu writes to the disk log %s; end it, or open with takeover",
           (unsigned long long)read_pulse(lock_).pid, folder.path.c_str());
    uint64_t term = highest + 1;
    if (!try_lock_byte(lock_.get(), kLockBase + term, path.c_str())) continue;
    if (!folder.is("lock", lock_))
      fail(GFT_BUSY, "the disk log %s was removed or replaced while it was being opened; try again", folder.path.c_str());
    try {
      copies_[0] = folder.open(super_name(term, 'a'), O_RDWR | O_CREAT | O_EXCL);
    } catch (const Fail &why) {
      // Somebody was faster and is gone again. Our lock on that byte is harmless: terms only grow.
      if (why.code != GFT_EXISTS) throw;
      continue;
    }
    term_ = term;
    copies_[1] = folder.open(super_name(term, 'b'), O_RDWR | O_CREAT);
    return;
  }
  fail(GFT_BUSY, "other processes are opening the disk log %s; try again", folder.path.c_str());
}

bool Lease::fenced() const {
  if (folder_.exists(super_name(term_ + 1, 'a'))) return true;
  struct stat status;
  return fstat(copies_[0].get(), &status) != 0 || status.st_nlink == 0;
}

void Lease::write(Super super) {
  super.term = term_;
  super.generation = generation_ + 1;
  unsigned copy = super.generation % 2;
  std::string name = folder_.path_of(super_name(term_, copy ? 'a' : 'b'));
  const File &file = copies_[copy ? 0 : 1];
  auto bytes = build_super(super);
  write_at(file, name, bytes.data(), bytes.size(), 0);
  sync_data(file, name);
  if (generation_ == 0) folder_.sync();
  generation_ = super.generation;
}

void Lease::retire_former() const {
  for (const std::string &name : folder_.names())  // sorted: lowest first
    if (name.starts_with("super-") && term_of(name) && term_of(name) < term_) folder_.remove(name);
}

void Lease::beat(const Pulse &pulse) noexcept {
  (void)!pwrite(lock_.get(), &pulse, sizeof pulse, 0);
}

}  // namespace gft::disk
