// The one pthread_atfork registration of the core, made on first use so that loading the library has no effect.
// It holds the list of descriptors that a forked child must not keep.
#include "fork_guard.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

namespace gft {
namespace {

std::atomic<uint64_t> generation{1};

// Leaked on purpose: handles may be freed by static destructors that run after ours would.
struct Guarded {
  std::mutex mutex;
  std::vector<int> descriptors;
};
Guarded &guarded() {
  static Guarded *only = new Guarded;
  return *only;
}

void before_fork() { guarded().mutex.lock(); }
void after_fork_in_parent() { guarded().mutex.unlock(); }
void after_fork_in_child() {
  generation.fetch_add(1, std::memory_order_relaxed);
  for (int descriptor : guarded().descriptors) close(descriptor);
  guarded().descriptors.clear();
  guarded().mutex.unlock();
}

}  // namespace

uint64_t fork_generation() noexcept { return generation.load(std::memory_order_relaxed); }

void guard_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); });
}

int open_guarded(const char *path, int flags, int mode) {
  guard_forks();
  std::lock_guard lock(guarded().mutex);
  int descriptor = open(path, flags | O_CLOEXEC, mode);
  if (descriptor >= 0) guarded().descriptors.push_back(descriptor);
  return descriptor;
}

void close_guarded(int descriptor, uint64_t made_in) noexcept {
  if (made_in != fork_generation()) return;
  std::lock_guard lock(guarded().mutex);
  auto &all = guarded().descriptors;
  all.erase(std::remove(all.begin(), all.end(), descriptor), all.end());
  close(descriptor);
}

}  // namespace gft
