// What one batch under way needs on a device: staging memory, the table that tells a kernel its pieces, and a bounce buffer.
// One berth per thread of the engine; it is not used again before everything it began has ended.
#pragma once

#include <memory>
#include <vector>

#include "../device/device.h"
#include "../device/kernel.h"
#include "plan.h"

namespace gft {

class Berth {
 public:
  // Allocates nothing yet.
  Berth(std::shared_ptr<device::Device> device, uint64_t staging_bytes, uint64_t max_pieces)
      : device_(std::move(device)), staging_bytes_(staging_bytes), max_pieces_(max_pieces) {}

  // With the device's context current. False: no memory for kernels, copies go straight.
  bool ready_for_kernels();
  // A pinned buffer of at least `bytes`; null when there is none to be had.
  uint8_t *bounce(uint64_t bytes);
  // Gives the memory back; with the context current.
  void release() noexcept;

  uint64_t staging_bytes() const { return staging_bytes_; }
  uint64_t max_pieces() const { return max_pieces_; }

  // Queues the plan on `stream`. Throws GFT_DEVICE; then some of it may be under way.
  void submit(const Plan &plan, bool in, bool one_by_one, unsigned thread_blocks, bool digest, device::Stream stream);
  // What the kernels said; valid once the work of `submit` is done, if the plan had rounds.
  const device::KernelResults &results() const { return *reinterpret_cast<device::KernelResults *>(table_); }

  // Work that had not ended at its deadline. The berth is of no use until it has.
  std::shared_ptr<device::Device::Mark> overdue;
  bool dead = false;  // not even that can be asked any more

 private:
  void launch(bool in, size_t from, size_t count, unsigned thread_blocks, bool digest, device::Stream stream);

  const std::shared_ptr<device::Device> device_;
  const uint64_t staging_bytes_, max_pieces_;
  device::Address staging_ = 0, device_table_ = 0;
  uint8_t *table_ = nullptr;  // pinned: KernelResults, then PackedPiece
  uint8_t *bounce_ = nullptr;
  uint64_t bounce_bytes_ = 0;
  bool tried_ = false, tried_bounce_ = false;
};

}  // namespace gft
