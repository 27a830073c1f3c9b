// Fuzz target: the ledger: replay by readers, the writer that goes on where a dead one stopped, compaction and takeover.
// Half of the inputs take over from a writer that is alive, so that both halves are read and written.
#include "arena_image.h"

using namespace fuzz;

namespace {

uint64_t read_all(gft_arena *arena) {
  uint64_t records = 0;
  const char *end = "";
  (void)gft_arena_read_ledger(
      arena,
      [](void *count, uint32_t, gft_bytes record) {
        CHECK(record.size <= kLedgerBytes);
        ++*static_cast<uint64_t *>(count);
      },
      &records, &end);
  return records;
}

void work(gft_ledger *ledger, Input &input) {
  for (int i = 0; i < 12 && !input.empty(); ++i) {
    uint8_t what = input.take<uint8_t>();
    if (what < 4)
      (void)gft_ledger_begin_compaction(ledger);
    else if (what < 8)
      (void)gft_ledger_commit_compaction(ledger);
    else if (what < 10)
      (void)gft_ledger_abort_compaction(ledger);
    else
      (void)gft_ledger_append(ledger, what, bytes_of(std::string(uint64_t{what} * 16, 'r')));
  }
  uint64_t used = 0, capacity = 0;
  CHECK(gft_ledger_usage(ledger, &used, &capacity) == GFT_OK && used <= capacity);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static ArenaImage image("ledger");
  image.restore();
  Input input(data, size);
  bool alive = input.take<uint8_t>() & 1;
  gft_ledger *former = nullptr, *ledger = nullptr;
  if (alive) CHECK(gft_arena_open_ledger(image.arena, 0, &former) == GFT_OK);
  for (uint8_t patches = input.take<uint8_t>() % 8; patches > 0; --patches) image.patch_once(input);
  (void)read_all(image.arena);
  if (gft_arena_open_ledger(image.arena, 1, &ledger) == GFT_OK) {
    work(ledger, input);
    (void)read_all(image.arena);
    if (former) (void)gft_ledger_append(former, 1, bytes_of("late"));
    gft_ledger_free(ledger);
  }
  if (former) gft_ledger_free(former);
  return 0;
}
