// Locks that die with their holder: byte ranges of the arena file, owned by an open file description.
// The bytes lie far behind the end of the file; nothing is ever stored there.
#pragma once

#include <cstdint>

namespace gft {

inline constexpr uint64_t kLockBase = uint64_t{1} << 60;
inline constexpr uint64_t kAdminLock = kLockBase;
inline constexpr uint64_t kLedgerLocks = kLockBase + 16;  // one per half
inline constexpr uint64_t kLaneLocks = kLockBase + 1024;  // one per lane
inline constexpr uint64_t kCreateLock = kLockBase + 8;

// One open file description of its own, so that two locks of this process exclude each other as well.
class LockFile {
 public:
  // Opens the file behind `descriptor` once more; `path` is only for the error text.
  LockFile(int descriptor, const char *path);
  ~LockFile();
  LockFile(const LockFile &) = delete;
  LockFile &operator=(const LockFile &) = delete;

  bool try_lock(uint64_t byte);  // false when somebody else has it; throws GFT_IO
  void unlock(uint64_t byte) noexcept;

 private:
  int descriptor_;
  uint64_t fork_generation_;
  const char *path_;
};

// `count` bytes from `byte` on, all or none.
bool try_lock_byte(int descriptor, uint64_t byte, const char *path, uint64_t count = 1);
// Any number may share a byte that nobody has locked; false when somebody has, or when it cannot be done here.
bool try_share_byte(int descriptor, uint64_t byte) noexcept;
// Whether anybody but `descriptor`'s own description holds one of the bytes, shared or not.
bool is_locked(int descriptor, uint64_t byte, uint64_t count = 1) noexcept;

}  // namespace gft
