// Watches the GPUs of this process through NVML: events as they happen, a poll for what comes without one.
// Every call has a deadline. A call that does not return becomes a record, its GPU is asked nothing more, the others are
// served.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nvml_state.h"

namespace gft::watch {

struct NvmlOptions {
  std::string library = "libnvidia-ml.so.1";
  bool every = true;              // all GPUs that NVML counts, else `gpus`
  std::vector<std::string> gpus;  // indexes, UUIDs (of a GPU or a MIG instance) or PCI addresses
  double poll_s = 0.25;           // 0: events only
  double call_deadline_s = 2.0;
};

class NvmlWatcher {
 public:
  // Opens the library, nothing else. Throws GFT_NOT_FOUND, GFT_VERSION, GFT_INVALID.
  NvmlWatcher(std::shared_ptr<Queue> queue, const NvmlOptions &options);
  ~NvmlWatcher();
  NvmlWatcher(const NvmlWatcher &) = delete;
  NvmlWatcher &operator=(const NvmlWatcher &) = delete;

  // Once. Afterwards events are recorded. Blocks for NVML's own init, at most about three call deadlines.
  // Throws GFT_TIMED_OUT when init does not return, GFT_NOT_FOUND without a driver or for a GPU that is not there.
  void start();
  // Ends all threads but those that are stuck in the driver, waiting for them at most `seconds`. True: none is left.
  bool stop(double seconds);
  // What is known; copies.
  std::vector<WatchedGpu> gpus() const;
  std::string driver() const;
  Counts counts() const;
  // Asks the GPU of this index nothing more; false when it is none of ours.
  bool avoid(int index);
  const nvml::Library &library() const { return state_->library; }

 private:
  bool mine() const;
  void begin();
  const uint64_t made_in_;
  const Shared state_;
};

}  // namespace gft::watch
