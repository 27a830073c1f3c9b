// Makes the arena's payload known to the driver, piece by piece in the background, so that copies can go there by DMA.
// Until a chunk is registered, copies to it take another way; it is unregistered before the mapping may go.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <thread>

#include "../arena/writer.h"
#include "device.h"

namespace gft::device {

constexpr uint64_t kLargestChunk = uint64_t{64} << 30;

class Registration {
 public:
  // `chunk_bytes` is rounded up to a multiple of the page; chunks begin at the first slot's payload.
  static std::shared_ptr<Registration> start(std::shared_ptr<Device> device, std::shared_ptr<Writer> writer, uint64_t chunk_bytes);
  Registration(std::shared_ptr<Device> device, std::shared_ptr<Writer> writer, uint64_t chunk_bytes);

  uint64_t base() const { return reinterpret_cast<uint64_t>(base_); }
  uint64_t chunk() const { return chunk_; }
  // Whether a range of the payload is registered as a whole. A chunk that is, stays so until `finish`.
  bool covers(const uint8_t *from, uint64_t bytes) const;

  struct Progress {
    uint64_t bytes = 0, registered = 0;
    double seconds = 0;
    bool done = false, failed = false, huge_pages = false;
  };
  Progress progress() const;

  // Ends the thread, which unregisters what it registered. False when it was not done after `seconds`: then the mapping,
  // the device and the thread stay until the process ends.
  // `last` is run on that thread first, with the device's context current.
  bool finish(double seconds, std::function<void()> last);

 private:
  static void run(std::shared_ptr<Registration> self);
  template <typename Step>
  bool attempt(Step step) noexcept;  // with the context current; false when it threw
  void enter();
  void leave();

  const std::shared_ptr<Device> device_;
  const std::shared_ptr<Writer> writer_;  // keeps the mapping
  uint8_t *const base_;
  const uint64_t bytes_, chunk_;
  std::atomic<uint64_t> chunks_{0};  // registered, from the first on
  std::atomic<bool> done_{false}, failed_{false}, huge_{false};
  std::atomic<double> seconds_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> last_;
  bool stop_ = false, ended_ = false, clean_ = false;
};

}  // namespace gft::device
