// Blocks all signals of the calling thread for a scope: threads started meanwhile inherit that, so the host's handlers run in
// the host's threads, and a write over the limit on file sizes is an error here and not the end of the process.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace gft {

class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() {
    // One that was raised by our own write must not arrive later.
    sigset_t raised, ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGXFSZ);
    struct timespec now = {0, 0};
    if (!sigismember(&before_, SIGXFSZ) && sigpending(&raised) == 0 && sigismember(&raised, SIGXFSZ))
      (void)sigtimedwait(&ours, nullptr, &now);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SignalsBlocked(const SignalsBlocked &) = delete;
  SignalsBlocked &operator=(const SignalsBlocked &) = delete;

 private:
  sigset_t before_;
};

}  // namespace gft
