// The processor as mover: one block at a time, digested on the way (stream.cpp).
// What the device mover is measured and checked against.
#include "layout.h"
#include "mover.h"
#include "stream.h"

namespace gft {
namespace {

class HostMover final : public Mover {
 public:
  HostMover(std::shared_ptr<Writer> writer, const Layout &layout) : writer_(std::move(writer)), layout_(layout) {}

  void out(std::span<Move> moves) noexcept override { each(moves, store_block); }
  void in(std::span<Move> moves) noexcept override { each(moves, load_block); }

 private:
  template <typename Copy>
  void each(std::span<Move> moves, Copy copy) noexcept {
    Core &core = writer_->core();
    for (Move &move : moves) {
      if (move.status != GFT_OK) continue;
      try {
        core.prefault_payload(move.slot);
        move.digest = copy(core.digest(), layout_, move.block_id, core.payload(move.slot));
      } catch (...) {
        Fail why = current_failure();
        move.status = why.code;
        move.detail = why.text;
      }
    }
  }

  const std::shared_ptr<Writer> writer_;
  const Layout layout_;
};

}  // namespace

std::shared_ptr<void> Mover::after(uint64_t stream) {
  if (stream) fail(GFT_INVALID, "a stream was named to a copy engine of host memory; use a device's copy engine");
  return nullptr;
}

std::shared_ptr<Mover> host_mover(std::shared_ptr<Writer> writer, const Layout &layout) {
  return std::make_shared<HostMover>(std::move(writer), layout);
}

}  // namespace gft
