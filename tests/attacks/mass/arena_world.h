// An arena with three chains over two namespaces and three shards, sealed in epoch 1 and again with other bytes in epoch 2.
// Faults change its mapped file; the judge asks for everything through the door and compares with what was sealed.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>

#include "run.h"

namespace mass {

inline constexpr uint64_t kPage = 4096, kSlotBytes = 300, kSlots = 24, kChain = 5, kChains = 3, kHeaderBytes = 192;
inline constexpr uint64_t kLedgerRecords = 30;
// The layout as csrc/arena/README.md gives it, computed here once more on purpose.
inline constexpr uint64_t kControl = kPage, kLanes = 3 * kPage, kNamespaces = 5 * kPage, kIndex = kNamespaces + 65 * kPage;
inline constexpr uint64_t kStates = kIndex + kPage, kStamps = kStates + kPage, kHolds = kStamps + kPage;
inline constexpr uint64_t kMarks = kHolds + kPage, kHeaders = kMarks + kPage, kLedger = kHeaders + 2 * kPage,
                          kHalf = 2 * kPage;
inline constexpr uint64_t kPayload = kLedger + 2 * kHalf, kFileBytes = kPayload + kSlots * kPage;

struct Chain {
  uint32_t name_space, shard;
};
inline constexpr Chain kKeys[kChains] = {{0, 0}, {0, 1}, {1, 2}};

inline std::string block_name(uint64_t position) { return "block number " + std::to_string(position); }
inline std::string truth_name(const Chain &chain, const std::string &name, int version) {
  return std::to_string(chain.name_space) + "/" + std::to_string(chain.shard) + "/" + name + "/" + std::to_string(version);
}

class ArenaWorld {
 public:
  ArenaWorld();
  ~ArenaWorld();

  void restore();
  End judge(Random &random);

  uint8_t *memory = nullptr;          // the file, mapped
  std::vector<uint8_t> sound, older;  // the whole file now, and as it was in epoch 1
  std::vector<uint64_t> used;         // slots with sealed blocks
  std::string path;

  uint64_t word(uint64_t at) const {
    uint64_t value;
    std::memcpy(&value, memory + at, 8);
    return value;
  }
  void set_word(uint64_t at, uint64_t value) { std::memcpy(memory + at, &value, 8); }
  void flip(Random &random, uint64_t at, uint64_t bytes) { memory[at + random.below(bytes)] ^= 1u << random.below(8); }
  void swap(uint64_t a, uint64_t b, uint64_t bytes) { std::swap_ranges(memory + a, memory + a + bytes, memory + b); }
  void copy(uint64_t to, uint64_t from, uint64_t bytes) { std::memmove(memory + to, memory + from, bytes); }
  uint64_t header(uint64_t slot) const { return kHeaders + slot * kHeaderBytes; }
  uint64_t payload(uint64_t slot) const { return kPayload + slot * kPage; }
  void reseal(uint64_t slot);  // link and seal fit whatever the header says now
  void resize(uint64_t bytes);
  // Another process's first look, for faults that a mapped arena does not read again.
  bool look_anew = false, stir_too = false;

 private:
  struct Attached {
    gft_writer *writer = nullptr;
    gft_engine *engine = nullptr;
    std::vector<uint8_t> memory = std::vector<uint8_t>(kSlotBytes * kChain);
  };
  void attach(const char *token);
  void seal(size_t chain, uint64_t position, int version);
  void write_ledger(gft_ledger *ledger, uint64_t count, const char *prefix);
  void judge_slots(gft_arena *arena);
  void judge_ledger(gft_arena *arena);
  void judge_prefix(gft_arena *arena, size_t chain);
  void judge_names(size_t chain);
  void judge_load(size_t chain);
  void stir(Random &random);
  void saw(uint64_t what) { seen_ = (seen_ ^ what) * 0x100000001b3; }

  gft_arena *arena_ = nullptr;
  gft_ledger *ledger_ = nullptr;
  Attached attached_[kChains];
  int descriptor_ = -1;
  uint64_t seen_ = 0, untouched_[2] = {};  // without and with another look
  bool stirred_ = false;
  std::map<std::string, std::vector<uint8_t>> truth_;  // what was sealed, by truth_name without version
};

}  // namespace mass
