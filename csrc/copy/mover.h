// Who moves the bytes of a batch of blocks: the processor (host_mover) or a device's copy engines (device_mover).
// The copy engine knows queues, chains and seals; a mover knows only where bytes are and when they have arrived.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../arena/writer.h"
#include "job.h"
#include "layout.h"

namespace gft {

// One block on its way between the engine and a slot. `status` other than GFT_OK: not moved.
struct Move {
  uint64_t block_id = 0, slot = 0;
  const Job *job = nullptr;
  gft_status status = GFT_OK;
  std::string detail;
  Digest digest{};    // of the bytes that arrived (out) or were sent (in)
  bool held = false;  // a device may still write to the slot: nobody may have it while this process lives
};

class Mover {
 public:
  virtual ~Mover() = default;
  // How many blocks one call should get, at most.
  virtual size_t batch() const { return 1; }
  // Engine -> slots, and slots -> engine. Blocks until every byte has arrived or the move has its status; never throws.
  // A move in that may still be under way is waited for, however long: its target is the engine's memory.
  virtual void out(std::span<Move> moves) noexcept = 0;
  virtual void in(std::span<Move> moves) noexcept = 0;
  // What a job must wait for: taken when it is submitted, kept by it. Throws GFT_BUSY, GFT_DEVICE.
  virtual std::shared_ptr<void> after(uint64_t stream);
  // A call into the device has not come back for too long; whoever waits for its result waits in vain.
  virtual bool stuck() noexcept { return false; }
  // The threads are gone: nothing is moved any more. Waits at most `seconds`; false when the device still holds on.
  virtual bool finish(double) noexcept { return true; }
  virtual std::vector<std::pair<std::string, double>> facts() { return {}; }
};

std::shared_ptr<Mover> host_mover(std::shared_ptr<Writer> writer, const Layout &layout);

}  // namespace gft
