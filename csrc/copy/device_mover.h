// A device's copy engines as mover: plans a batch, queues it, waits for its event, and takes the digest of what arrived.
// A copy is under way only after the engine's stream has passed the job's mark, and never outlives the call that began it,
// except on a wedged device: then the slot is held.
#pragma once

#include <condition_variable>
#include <mutex>

#include "../device/registration.h"
#include "berth.h"
#include "mover.h"

namespace gft {

struct DeviceRules {
  int threads = 2;
  uint64_t staging_bytes = 0, chunk_bytes = 0;
  unsigned thread_blocks = 4;
  bool digest = false;
  std::vector<Threshold> out, in;
};

class DeviceMover final : public Mover {
 public:
  // Begins to register the arena in the background. Throws GFT_INVALID, GFT_DEVICE.
  DeviceMover(std::shared_ptr<device::Device> device, std::shared_ptr<Writer> writer, const Layout &layout, DeviceRules rules);

  ~DeviceMover() override;

  size_t batch() const override { return batch_; }
  void out(std::span<Move> moves) noexcept override { move(moves, false); }
  void in(std::span<Move> moves) noexcept override { move(moves, true); }
  std::shared_ptr<void> after(uint64_t stream) override;
  bool stuck() noexcept override { return device_->stuck(); }
  bool finish(double seconds) noexcept override;
  std::vector<std::pair<std::string, double>> facts() override;

 private:
  // One attempt at some of a call's moves.
  struct Batch {
    std::vector<Move *> moves;
    Berth *berth;
    bool in;
    uint8_t *bounce = nullptr;
    Plan plan;
    bool digested = false;
    uint8_t *host(size_t i, const DeviceMover &mover) const;
  };

  void move(std::span<Move> moves, bool in) noexcept;
  void attempt(Batch &batch, bool careful);
  std::vector<Move *> mixed_up(const Batch &batch);
  void wait_for_engine(std::vector<Move *> &moves);
  void prepare(Batch &batch, bool careful);
  void await(Batch &batch);
  bool quiet(Batch &batch) noexcept;
  void arrived(Batch &batch);
  static void fail_all(const std::vector<Move *> &moves, gft_status status, const std::string &detail, bool held);
  std::unique_ptr<Berth> take_berth();
  void put_berth(std::unique_ptr<Berth> berth) noexcept;

  const std::shared_ptr<device::Device> device_;
  const std::shared_ptr<Writer> writer_;
  const Layout layout_;
  const DeviceRules rules_;
  const size_t batch_;
  std::shared_ptr<device::Registration> registration_;

  std::mutex mutex_;
  std::vector<std::unique_ptr<Berth>> berths_;
  bool finishing_ = false;
  std::atomic<uint64_t> batches_{0}, direct_{0}, packed_{0}, bounced_{0}, retries_{0}, mixups_{0}, overdue_{0};
};

}  // namespace gft
