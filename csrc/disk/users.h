// Who has a log open, told by its locks alone, and taking a log nobody has open out of the way. For people who tidy up:
// neither opens the log, reads a block, or waits.
#pragma once

#include <string>

namespace gft::disk {

struct Users {
  bool writer = false, readers = false;
  uint64_t pid = 0;  // of the writer, as it said: a hint
};

// Throws as opening the folder does, and GFT_NOT_FOUND when there is no lock file: nobody has it open then.
Users users_of(const std::string &folder);

// Renames the folder to `to`, beside it, while nobody can open it; who opens the log afterwards begins a new one. Throws
// GFT_BUSY when a writer lives, stopped or fenced off too, or somebody reads it (unless `even_if_read`: readers then find
// nothing more), or when the folder was replaced meanwhile.
void set_aside(const std::string &folder, const std::string &to, bool even_if_read);

}  // namespace gft::disk
