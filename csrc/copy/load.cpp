// Verification on the way back: seal and links were checked when the chain was found; here the payload's digest is taken
// from the bytes that arrived, and the slot's generation is checked once more afterwards.
#include "load.h"

namespace gft {

std::vector<Sealed> find_chain(Writer &writer, const std::vector<BlockSpec> &blocks, Outcome &end) {
  std::vector<Sealed> out;
  try {
    writer.check();
    ChainWalk walk(writer.core(), writer.wanted());
    auto take = [&] {
      auto part = walk.chain();
      out.insert(out.end(), part.begin(), part.end());
    };
    for (size_t i = 0; i < blocks.size(); ++i) {
      const BlockSpec &block = blocks[i];
      bool follows = i > 0 && block.parent == blocks[i - 1].hash && block.position == blocks[i - 1].position + 1;
      Why why = Why::ok;
      if (!follows) {
        take();
        why = walk.start(block.parent_or_null(), block.position);
      }
      if (why == Why::ok) why = walk.step(block.hash);
      if (why != Why::ok) {
        end.status = why_status(why);
        end.detail =
            std::string("the block at position ") + std::to_string(block.position) + " cannot be used: " + why_text(why);
        break;
      }
    }
    take();
    uint64_t tick = writer.core().tick();
    for (const Sealed &sealed : out) writer.mark(sealed, Writer::Mark::touch, tick);
  } catch (...) {
    Fail why = current_failure();
    out.clear();
    end = {why.code, why.text};
  }
  return out;
}

std::vector<Outcome> load_some(Writer &writer, Mover &mover, const Job &job, size_t from, size_t count) {
  std::vector<Outcome> out(count);
  Core &core = writer.core();
  try {
    writer.check();
    const Outcome changed{GFT_CHANGED, "the block was evicted while it was being loaded"};
    std::vector<Move> moves(count);
    for (size_t i = 0; i < count; ++i) {
      const Sealed &sealed = job.found[from + i];
      moves[i].block_id = job.blocks[from + i].block_id;
      moves[i].slot = sealed.slot;
      moves[i].job = &job;
      if (!sealed.unchanged(core)) moves[i].status = changed.status, moves[i].detail = changed.detail;
    }
    mover.in(moves);
    for (size_t i = 0; i < count; ++i) {
      const Sealed &sealed = job.found[from + i];
      if (moves[i].status != GFT_OK) {
        out[i] = {moves[i].status, moves[i].detail};
      } else if (!sealed.unchanged(core)) {
        out[i] = changed;
      } else if (moves[i].digest != std::to_array(sealed.header.digest)) {
        writer.drop(sealed);
        out[i] = {GFT_DIGEST, "the payload in slot " + std::to_string(sealed.slot) + " is not what was sealed; it was dropped"};
      }
    }
  } catch (...) {
    Fail why = current_failure();
    for (Outcome &each : out)
      if (each.status == GFT_OK) each = {why.code, why.text};
  }
  return out;
}

}  // namespace gft
