// The thread of a watcher: it looks, waits on `ending` and whatever else it likes, and looks again until it is told to end.
// Without the host's signals; in a forked child it is the parent's, and its handle does nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>

namespace gft::watch {

class Looker {
 public:
  // `what` names the thread in an error.
  explicit Looker(std::string what);
  ~Looker() { end(); }
  Looker(const Looker &) = delete;
  Looker &operator=(const Looker &) = delete;

  void start(std::function<void()> body);
  void end() noexcept;                          // tells it and waits for it; may be repeated
  int ending() const noexcept { return stop_; }  // readable from `end` on
  bool ours() const noexcept;                   // false in a forked child

 private:
  const std::string what_;
  const uint64_t made_in_;
  int stop_ = -1;
  std::thread thread_;
};

}  // namespace gft::watch
