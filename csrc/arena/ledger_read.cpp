// Replaying the ledger: whole records of the current generation, in order, until the first that is not one.
// A record is copied out before its checksum is computed, so what is returned is what was checked.
#include <cstring>

#include "../digest/crc32c.h"
#include "../support/optimistic.h"
#include "ledger.h"
#include "ledger_words.h"

namespace gft {
namespace {

constexpr int kAttempts = 16;

uint64_t commit_word_at(const uint8_t *at) {
  return Word(*reinterpret_cast<uint64_t *>(const_cast<uint8_t *>(at))).load(std::memory_order_acquire);
}

}  // namespace

LedgerContents replay_half(const Core &core, unsigned half, uint64_t generation) {
  const uint8_t *base = core.ledger_half(half);
  const uint64_t end = core.geometry().half_bytes;
  LedgerContents out;
  while (end - out.used >= sizeof(RecordHeader)) {
    RecordHeader header;
    header.commit = commit_word_at(base + out.used);
    if (header.commit == 0) break;
    header.generation = commit_word_at(base + out.used + 8);
    uint64_t size_and_kind = commit_word_at(base + out.used + 16);
    header.bytes = static_cast<uint32_t>(size_and_kind);
    header.kind = static_cast<uint32_t>(size_and_kind >> 32);
    out.torn = true;
    if (header.generation != generation || record_bytes(header.bytes) > end - out.used) break;
    LedgerRecord record{header.kind, {}};
    OptimisticRead half_may_be_compacted_into;
    record.payload.assign(base + out.used + sizeof header, base + out.used + sizeof header + header.bytes);
    if (header.commit != commit_of(header, out.used, record.payload.data())) break;
    out.torn = false;
    out.used += record_bytes(header.bytes);
    out.records.push_back(std::move(record));
  }
  return out;
}

LedgerContents read_ledger(const Core &core) {
  core.check_alive();
  Word word(core.control()->ledger_word), tail(core.control()->ledger_tail);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    // The tail first: it may only be behind the records that are found later.
    uint64_t tail_before = tail.load(std::memory_order_acquire);
    LedgerWord before = LedgerWord::of(word.load(std::memory_order_acquire));
    LedgerContents out = replay_half(core, before.half, before.generation);
    std::atomic_thread_fence(std::memory_order_acquire);
    LedgerWord after = LedgerWord::of(word.load(std::memory_order_relaxed));
    if (after.generation != before.generation || after.half != before.half) continue;
    if (tail_generation(tail_before) == (before.generation & kTailGenerations) && tail_used(tail_before) > out.used)
      out.torn = true;
    return out;
  }
  fail(GFT_CHANGED, "the ledger of arena %s was compacted during each of %d attempts to read it; try again", core.path(),
       kAttempts);
}

}  // namespace gft
