// Who may write: terms, their locks, the fence against former writers, and the superblock of the current term.
// README.md, "Terms", says why the order of the steps matters.
#pragma once

#include <memory>
#include <optional>

#include "../arena/locks.h"
#include "folder.h"
#include "parse.h"

namespace gft::disk {

// Bytes of `lock`: readers share the first one, a writer has the one that many behind it as its term says.
inline constexpr uint64_t kReaders = kLockBase, kTerms = uint64_t{1} << 31;

// The newest superblock that holds, of any term; nothing when there is none. `highest` is the highest term in use by
// name, 0 for none.
std::optional<Super> newest_super(const Folder &folder, uint64_t &highest);
Pulse read_pulse(const File &lock);

class Lease {
 public:
  // Steps 1 and 2: afterwards every former writer is fenced. Throws GFT_BUSY, and whatever making a file can throw.
  Lease(const Folder &folder, bool takeover);
  const uint64_t &term() const { return term_; }
  bool fenced() const;  // also true when it cannot be told

  // Durable on return. The first one also makes the second copy and the folder's entries durable.
  void write(Super super);
  // Removes the superblocks of former terms, lowest first.
  void retire_former() const;
  void beat(const Pulse &pulse) noexcept;  // a hint: may fail
  uint64_t generation() const { return generation_; }

 private:
  const Folder &folder_;
  File lock_, copies_[2];
  uint64_t term_ = 0, generation_ = 0;
};

}  // namespace gft::disk
