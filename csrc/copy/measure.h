// How long a device takes for a transfer of given pieces on a given way: what the thresholds of the plan are chosen from.
// Runs on buffers of its own, before the copy engine starts.
#pragma once

#include <memory>
#include <string>

#include "../device/device.h"

namespace gft {

// Median seconds from queueing to arrival of `count` pieces of `bytes` bytes. `way` is "plain", "batch" or "kernel".
// Throws GFT_NOT_FOUND when the device has no such way, GFT_INVALID for nonsense, GFT_DEVICE, GFT_TIMED_OUT.
double measure(const std::shared_ptr<device::Device> &device, const std::string &way, bool in, uint64_t bytes, uint64_t count,
               unsigned thread_blocks);

}  // namespace gft
