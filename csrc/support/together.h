// Runs independent pieces of one caller's work on a few threads, the caller's among them, and returns when all are done.
// For work of milliseconds: threads are started for each call, and where none can be, the caller does it alone.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "quiet.h"

namespace gft {

// `each(i)` for every i below `count`, in no order, on up to `threads` threads; what one of them throws is thrown here, once.
template <typename Each>
void together(unsigned threads, size_t count, Each each) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr thrown;
  auto work = [&] {
    try {
      for (size_t i; (i = next.fetch_add(1)) < count;) each(i);
    } catch (...) {
      std::lock_guard lock(mutex);
      thrown = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  if (threads > 1 && count > 1) {
    SignalsBlocked quiet;
    try {
      others.reserve(threads - 1);
      while (others.size() + 1 < threads && others.size() + 1 < count) others.emplace_back(work);
    } catch (const std::exception &) {
      // No thread or no memory for one: those there are do it.
    }
  }
  work();
  for (std::thread &other : others) other.join();
  if (thrown) std::rethrow_exception(thrown);
}

}  // namespace gft
