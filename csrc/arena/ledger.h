// The append-only record of requests: two halves, of which one is the ledger and the other takes compactions.
// Readers need no lock; there is one live writer, held by a lock on the half it writes.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core.h"

namespace gft {

struct LedgerRecord {
  uint32_t kind;
  std::vector<uint8_t> payload;
};

struct LedgerContents {
  std::vector<LedgerRecord> records;
  bool torn = false;
  uint64_t used = 0;  // bytes of whole records
};

// Reads the ledger as it is now. GFT_CHANGED when it was compacted during every attempt.
LedgerContents read_ledger(const Core &core);

class Ledger {
 public:
  static std::unique_ptr<Ledger> open(std::shared_ptr<Core> core, bool takeover);
  explicit Ledger(std::shared_ptr<Core> core) : core_(std::move(core)) {}

  // Readable as soon as this returns. GFT_FULL leaves the ledger as it was; GFT_FENCED: treat the record as not written.
  void append(uint32_t kind, std::span<const uint8_t> payload);
  void begin_compaction();
  void commit_compaction();
  void abort_compaction();
  void close();
  void usage(uint64_t &used, uint64_t &capacity);

 private:
  struct Half {
    unsigned number = 0;
    uint64_t generation = 0, used = 0;
    std::unique_ptr<LockFile> lock;
  };
  void check() const;
  void start_half(Half &half, uint64_t generation);
  void put(Half &half, uint32_t kind, std::span<const uint8_t> payload);
  void take_over(uint64_t word, Half other);
  [[noreturn]] void fenced();

  const std::shared_ptr<Core> core_;
  std::mutex mutex_;
  bool closed_ = false, compacting_ = false;
  uint64_t word_ = 0;  // what the ledger word must be while we are the writer
  Half active_, other_;
};

}  // namespace gft
