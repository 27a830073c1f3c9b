// A device made of host memory and threads, behind the same table as the driver: what the tests and the demos without a GPU use.
// It runs late and in stream order, so that a missing wait shows as wrong bytes; it can fail, wedge, flip and be lost on request.
//
// Device addresses carry a tag, so that host code which follows one is stopped by the processor. Everything it says of itself
// begins with "simulated".
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../gft_device.h"
#include "driver.h"

namespace gft::device {

class Twin;

struct TwinStream {
  Twin *twin;
  std::mutex mutex;
  std::condition_variable changed;
  struct Work {
    double seconds;             // it takes effect this long after its turn came
    std::function<void()> act;  // on the stream's thread
    std::function<bool()> may_start;
  };
  std::deque<Work> queue;
  std::atomic<bool> stop{false};
  std::thread thread;
};

struct TwinEvent {
  Twin *twin;
  std::atomic<uint64_t> recorded{0}, done{0};
};

class Twin {
 public:
  // Makes the next device of this process; it lives until the process ends, as a device does.
  static Twin &make(const gft_twin_options &options);
  static Twin *find(Ordinal ordinal);   // null: no such device
  static Twin *current();               // of this thread's context stack; null: none
  static std::vector<Twin *> &stack();  // of this thread

  explicit Twin(Ordinal ordinal, const gft_twin_options &options) : ordinal(ordinal), options_(options) {}

  const Ordinal ordinal;
  gft_twin_options options();
  // Call counts in `options` count from now on.
  void set(const gft_twin_options &options);
  uint64_t calls() const { return calls_.load(); }

  // Every call of the table starts here: counts, delays, fails, blocks or loses the device as asked.
  Result enter();
  bool lost() const { return lost_.load(); }

  // Memory. `resolve` gives the host bytes behind a device range, null when it is not inside one allocation.
  Result allocate(Address *out, size_t bytes);
  Result free(Address address);
  void adopt(Address address, size_t bytes);  // memory of the caller's becomes memory of this device, untagged
  uint8_t *resolve(Address address, size_t bytes);

  Result register_host(uint8_t *address, size_t bytes);
  Result unregister_host(uint8_t *address);
  enum class Host { pageable, pinned, torn };  // torn: begins in one registration and ends outside it
  Host host_kind(const void *address, size_t bytes);
  uint64_t registered_bytes();

  // Streams.
  TwinStream *stream();
  void end(TwinStream *stream);
  Result enqueue(TwinStream *stream, double seconds, std::function<void()> act, std::function<bool()> may_start = {});
  double transfer_seconds(size_t bytes);
  // The bytes of a copy, at the moment it takes effect.
  void transfer(uint8_t *to, const uint8_t *from, size_t bytes, bool out);

 private:
  void run(TwinStream *stream);

  std::mutex mutex_;
  std::condition_variable released_;
  gft_twin_options options_;
  std::atomic<uint64_t> calls_{0}, since_{0}, copies_{0}, random_{0};
  std::atomic<bool> lost_{false};
  uint64_t generation_ = 0;  // of `options_`: a new one releases blocked calls
  struct Memory {
    size_t bytes;
    std::unique_ptr<uint8_t[]> owned;
    uint8_t *host;
  };
  std::map<Address, Memory> memory_;
  std::map<uint8_t *, size_t> registered_;
};

// Tagged: no host pointer of x86-64 has this bit without being non-canonical.
constexpr Address kTwinTag = Address{1} << 56;

// Host versions of the kernels, by name; the handles that module_function gives out.
using TwinKernel = void (*)(Twin &, void **parameters);
TwinKernel twin_kernel(const char *name);  // null: no such kernel

}  // namespace gft::device
