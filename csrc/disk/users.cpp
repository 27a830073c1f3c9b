// Asking about and taking the locks of all terms at once: one range covers every writer there can be, and the readers' byte.
// A lock counts only on the file that the folder has now.
#include "users.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdio>

#include "../support/fail.h"
#include "lease.h"

namespace gft::disk {

Users users_of(const std::string &folder_path) {
  Folder folder(folder_path, false, true);
  File lock = folder.open("lock", O_RDONLY);
  Users out;
  out.readers = is_locked(lock.get(), kReaders);
  out.writer = is_locked(lock.get(), kReaders + 1, kTerms);
  if (out.writer) out.pid = read_pulse(lock).pid;
  return out;
}

void set_aside(const std::string &folder_path, const std::string &to, bool even_if_read) {
  Folder folder(folder_path, false, false);
  File lock = folder.open("lock", O_RDWR | O_CREAT);
  const char *path = folder_path.c_str();
  if (!try_lock_byte(lock.get(), kReaders + 1, path, kTerms) ||
      (!even_if_read && !try_lock_byte(lock.get(), kReaders, path)))
    fail(GFT_BUSY, "the disk log %s is in use; end who uses it first", path);
  if (!folder.is("lock", lock)) fail(GFT_BUSY, "the disk log %s was replaced meanwhile; look again", path);
  if (rename(path, to.c_str()) != 0) fail_io("rename", folder_path, errno);
}

}  // namespace gft::disk
