// The arena as a file: created whole or not at all, opened only after its header holds, mapped shared.
// The first step of every flow; what comes after works on the mapping and checks every word it reads there.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "../digest/digest.h"
#include "format.h"
#include "geometry.h"

namespace gft {

class ArenaFile {
 public:
  enum class Mode { create, open_or_create };
  // Blocks for the allocation, and for that of a process that is creating the same path now (bounded, two minutes).
  static std::unique_ptr<ArenaFile> create(const std::string &path, const Geometry &geometry, Mode mode);
  static std::unique_ptr<ArenaFile> open(const std::string &path, bool read_only);
  ~ArenaFile();
  ArenaFile(const ArenaFile &) = delete;
  ArenaFile &operator=(const ArenaFile &) = delete;

  // Throws GFT_FORKED in a child and GFT_DAMAGED when the file was cut: reading behind its end would be a SIGBUS.
  // NOTE: a file cut between this and the read is still one; nothing but not sharing the file prevents that.
  void check_alive() const;

  // Maps the pages around a place that is about to be copied to or from, once per process and window. A hint: without
  // it each page costs a fault of its own, which is several times slower than the copy.
  void prefault(uint64_t offset, uint64_t bytes) noexcept;

  const std::string path;
  const bool read_only;
  Geometry geometry;
  const DigestAlgorithm *digest = nullptr;
  uint8_t id[16] = {};
  int descriptor = -1;
  uint8_t *base = nullptr;
  const uint64_t fork_generation;

 private:
  ArenaFile(std::string path, bool read_only, int descriptor);
  void map();
  void read_header();

  uint8_t *reserved_ = nullptr;
  uint64_t reserved_bytes_ = 0;
  static constexpr uint64_t kWindow = uint64_t{4} << 20;
  std::unique_ptr<std::atomic<bool>[]> faulted_;  // per window of the mapping
};

}  // namespace gft
