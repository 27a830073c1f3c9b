// An eventfd tells the thread of looker.h to end: it is waited on together with what the watcher watches.
// A forked child joins nothing and closes nothing: its descriptor may be another file by then.
#include "looker.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "../support/fail.h"
#include "../support/fork_guard.h"
#include "../support/quiet.h"

namespace gft::watch {

Looker::Looker(std::string what) : what_(std::move(what)), made_in_((guard_forks(), fork_generation())) {
  stop_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (stop_ < 0) fail(GFT_IO, "cannot make an eventfd: %s; check the limit on open files (ulimit -n)", strerror(errno));
}

void Looker::start(std::function<void()> body) {
  SignalsBlocked quiet;
  try {
    thread_ = std::thread(std::move(body));
  } catch (const std::exception &why) {
    fail(GFT_INTERNAL, "cannot start %s: %s; check the process limit (ulimit -u)", what_.c_str(), why.what());
  }
}

void Looker::end() noexcept {
  if (!ours()) {
    if (thread_.joinable()) thread_.detach();
    return;
  }
  if (stop_ < 0) return;
  const uint64_t one = 1;
  (void)!write(stop_, &one, sizeof one);
  if (thread_.joinable()) thread_.join();
  close(stop_);
  stop_ = -1;
}

bool Looker::ours() const noexcept { return fork_generation() == made_in_; }

}  // namespace gft::watch
