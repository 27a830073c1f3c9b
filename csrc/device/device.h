// One device as the copy path sees it: its context, two streams, kernels, and what is known of its health.
// Every call of the table goes through `must` or `ask`, which notice a lost device and how long a call has been away.
#pragma once

#include <atomic>
#include <chrono>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../support/fail.h"
#include "driver.h"

namespace gft::device {

using Clock = std::chrono::steady_clock;

class Device : public std::enable_shared_from_this<Device> {
 public:
  // Retains the primary context of `ordinal`. Throws GFT_INVALID, GFT_DEVICE.
  static std::shared_ptr<Device> open(const Driver &driver, int ordinal, double timeout);
  Device(const Driver &driver, Ordinal ordinal, double timeout);
  ~Device();

  const Driver &driver;
  const Ordinal ordinal;
  const double timeout;  // seconds that a call, or a batch of copies, may take
  std::string name, uuid;
  int major = 0, minor = 0, node = -1;  // compute capability; NUMA node, -1 when unknown

  Stream stream(bool in) const { return streams_[in ? 1 : 0]; }

  // Calls `call` and throws GFT_DEVICE unless it succeeds. `what` names the call in the error.
  template <typename Call>
  void must(const char *what, Call &&call) {
    if (Result result = ask(call)) refuse(what, result);
  }
  // The same, giving the result; a fatal one still marks the device as lost.
  template <typename Call>
  Result ask(Call &&call) {
    if (lost()) return lost_with_.load();
    Away away(*this);
    Result result = call();
    if (is_fatal(result)) lose(result);
    return result;
  }
  [[noreturn]] void refuse(const char *what, Result result) const;

  bool lost() const { return lost_with_.load() != kSuccess; }
  // A call has been away for longer than `timeout`. Not for ever: a stopped process may have been continued.
  bool stuck() noexcept;
  bool usable() noexcept { return !lost() && !stuck(); }

  // Kernels. `use` takes the first image that the driver accepts; throws GFT_DEVICE when there is none.
  void use_kernels(const std::vector<std::string> &images);
  bool has_kernels() const { return gather_.load() != nullptr; }
  Function kernel(bool in) const { return in ? scatter_.load() : gather_.load(); }
  void do_without_kernels() { gather_ = nullptr; }
  bool batches() const { return batches_; }
  void do_without_batches() { batches_ = false; }

  // Copies of one direction on one stream: by one batched call where there is one, else one by one. Throws GFT_DEVICE.
  struct Copy {
    Address device;
    void *host;
    size_t bytes;
  };
  void copy(bool in, const std::vector<Copy> &copies, Stream on, bool one_by_one = false);

  // An event out of the ring of this device; it goes back when the last reference is gone.
  struct Mark {
    std::shared_ptr<Device> device;
    Event event = nullptr;
    ~Mark();
  };
  std::shared_ptr<Mark> mark(Stream on);  // recorded there
  // Whether everything before the mark is done. Throws GFT_DEVICE.
  bool passed(const Mark &mark);
  // Polls until the mark is passed. False at the deadline; throws GFT_DEVICE when the device is lost.
  bool wait(const Mark &mark, Clock::time_point deadline);

 private:
  struct Away {
    explicit Away(Device &device);
    ~Away();
    Device &device;
    std::list<Clock::time_point>::iterator since;
  };
  void lose(Result result) noexcept { lost_with_ = result; }

  Context context_ = nullptr;
  Stream streams_[2] = {};
  std::atomic<Result> lost_with_{kSuccess};
  std::atomic<bool> batches_{false};
  std::mutex away_mutex_;
  std::list<Clock::time_point> away_;
  std::mutex events_mutex_;
  std::vector<Event> events_;
  std::mutex modules_mutex_;
  std::vector<Module> modules_;
  std::atomic<Function> gather_{nullptr}, scatter_{nullptr};

  friend class Current;
};

// Makes the device's context current in this thread for a while.
class Current {
 public:
  explicit Current(Device &device);  // throws GFT_DEVICE
  ~Current();
  Current(const Current &) = delete;
  Current &operator=(const Current &) = delete;

 private:
  Device &device_;
};

}  // namespace gft::device
