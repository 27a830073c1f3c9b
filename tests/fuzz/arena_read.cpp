// Fuzz target: everything a reader believes of an open arena: namespaces, index, states, headers, chains, payloads, ledger.
// The writer that finds and loads was attached while the arena was sound, as that of a running engine is.
#include "../../csrc/copy/load.h"
#include "../../csrc/door.h"
#include "arena_image.h"
#include "look.h"

using namespace fuzz;

namespace {

void load_the_chain(const std::shared_ptr<gft::Writer> &writer) {
  static std::vector<uint8_t> memory(kSlotBytes * kChain);
  gft_region region{reinterpret_cast<uint64_t>(memory.data()), kSlotBytes, kSlotBytes, kChain};
  static const auto mover = gft::host_mover(writer, gft::Layout::of(&region, 1));
  gft::Job job{};
  job.load = true;
  for (uint64_t i = 0; i < kChain; ++i)
    job.blocks.push_back({i, name(i), i ? std::optional<std::string>(name(i - 1)) : std::nullopt, i});
  job.statuses.resize(kChain);
  gft::Outcome end;
  job.found = gft::find_chain(*writer, job.blocks, end);
  CHECK(job.found.size() <= kChain);
  if (!job.found.empty()) (void)gft::load_some(*writer, *mover, job, 0, job.found.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static ArenaImage image("read");
  static gft_writer *writer = nullptr;
  image.restore();
  if (!writer) CHECK(gft_arena_attach(image.arena, 0, token(), 0, 0, &writer) == GFT_OK);
  static const gft::LaneRecord lane = reinterpret_cast<gft::LaneRecord *>(image.memory + image.geometry.lanes)[0];
  std::memcpy(image.memory + image.geometry.lanes, &lane, sizeof lane);
  Input input(data, size);
  image.patch(input);
  look_at_everything(image.arena);
  for (uint64_t i = 0; i < kChain; ++i) {
    std::string hash = name(i), parent = i ? name(i - 1) : "";
    gft_read *read = nullptr;
    if (gft_writer_find(writer, bytes_of(hash), i ? bytes_of(parent) : no_parent(), &read) != GFT_OK) continue;
    uint64_t slot, address, bytes;
    gft_read_info(read, &slot, &address, &bytes);
    CHECK(slot < kSlots && bytes == kSlotBytes);
    (void)gft_read_verify(read);
    (void)gft_read_recheck(read);
    gft_read_free(read);
  }
  load_the_chain(writer->writer);
  return 0;
}
