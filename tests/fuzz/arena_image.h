// A small sound arena that the fuzz targets start from: built once, mapped, and put back byte for byte before each input.
// An input is a list of patches on it; some make checksums and seals fit again, as a liar with write access would.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <span>

#include "../../csrc/arena/core.h"
#include "../../csrc/arena/ledger_words.h"
#include "../native/programs/support.h"

namespace fuzz {

inline constexpr uint64_t kSlotBytes = 64, kSlots = 8, kChain = 5, kLedgerBytes = 8192;
inline constexpr const char *kToken = "0123456789abcdef";
inline const uint8_t *token() { return reinterpret_cast<const uint8_t *>(kToken); }
inline std::string name(uint64_t i) { return "block " + std::to_string(i); }

// Takes an input apart; gives zeros at its end.
class Input {
 public:
  Input(const uint8_t *data, size_t size) : left_(data, size) {}
  bool empty() const { return left_.empty(); }
  template <typename T>
  T take() {
    T value{};
    size_t bytes = std::min(sizeof value, left_.size());
    if (bytes) std::memcpy(&value, left_.data(), bytes);
    left_ = left_.subspan(bytes);
    return value;
  }
  std::span<const uint8_t> bytes(size_t count) {
    auto out = left_.first(std::min(count, left_.size()));
    left_ = left_.subspan(out.size());
    return out;
  }

 private:
  std::span<const uint8_t> left_;
};

class ArenaImage {
 public:
  explicit ArenaImage(const char *target)
      : path((access("/dev/shm", W_OK) == 0 ? "/dev/shm/gft-fuzz-" : "/tmp/gft-fuzz-") + std::string(target) + "-" +
             std::to_string(getpid())) {
    unlink(path.c_str());
    geometry = gft::Geometry::of(kSlotBytes, kSlots, kLedgerBytes);
    gft_geometry wanted{kSlotBytes, kSlots, kLedgerBytes};
    CHECK(gft_arena_create(path.c_str(), &wanted, 0, &arena) == GFT_OK);
    fill();
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    memory = static_cast<uint8_t *>(mmap(nullptr, geometry.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0));
    CHECK(memory != MAP_FAILED);
    sound_.assign(memory, memory + geometry.file_bytes);
  }
  ~ArenaImage() {
    gft_arena_free(arena);
    unlink(path.c_str());
  }

  void restore() {
    if (file_bytes() != geometry.file_bytes) resize(geometry.file_bytes);
    std::memcpy(memory, sound_.data(), sound_.size());
  }
  void resize(uint64_t bytes) { CHECK(ftruncate(descriptor_, static_cast<off_t>(bytes)) == 0); }
  uint64_t file_bytes() const {
    struct stat status;
    CHECK(fstat(descriptor_, &status) == 0);
    return static_cast<uint64_t>(status.st_size);
  }

  // Applies patches until the input, or its share of at most 24, is used up.
  void patch(Input &input) {
    for (int i = 0; i < 24 && !input.empty(); ++i) patch_once(input);
  }
  void patch_once(Input &input);
  // What a forger of headers does: link and seal fit whatever the header now says.
  void reseal(uint64_t slot);

  const std::string path;
  gft::Geometry geometry;
  gft_arena *arena = nullptr;
  uint8_t *memory = nullptr;

 private:
  struct Region {
    uint64_t at, bytes;
  };
  std::array<Region, 12> regions() const {
    const gft::Geometry &g = geometry;
    constexpr uint64_t words = offsetof(gft::Control, tokens);
    return {{{g.control, words},
             {g.control + words, 4 * sizeof(gft::TokenRecord)},
             {g.lanes, 4 * sizeof(gft::LaneRecord)},
             {g.namespaces, 2 * sizeof(gft::NamespaceRecord)},
             {g.index, g.index_entries * 8},
             {g.states, kSlots * 8},
             {g.stamps, kSlots * 8},
             {g.holds, kSlots * 8},
             {g.marks, kSlots * 8},
             {g.headers, kSlots * sizeof(gft::SlotHeader)},
             {g.ledger, 2 * g.half_bytes},
             {g.payload, kSlots * g.stride}}};
  }
  void fill();

  int descriptor_ = -1;
  std::vector<uint8_t> sound_;
};

}  // namespace fuzz
