// Turns a prefix of verified blocks of one layout into sealed blocks of another, in order, block by block.
// The caller's background thread calls `convert`; what is converted joins the writer's namespace as new blocks.
#pragma once

#include <atomic>
#include <mutex>

#include "source.h"

namespace gft {

// One block to make, and the names of the source blocks it is made of.
struct TargetSpec {
  std::string hash;
  std::optional<std::string> parent;
  uint64_t position;
  std::vector<std::string> sources;
};

struct Converted {
  std::vector<gft_status> statuses;
  uint64_t bytes = 0;
  double seconds = 0;
  std::string detail;  // of the first failure
};

class Converter {
 public:
  using Clock = std::chrono::steady_clock;

  // Throws GFT_INVALID and GFT_MISMATCH when plans, source and writer do not fit each other. The phases are shared.
  Converter(std::shared_ptr<Writer> writer, std::unique_ptr<Source> source, std::vector<uint32_t> shards,
            std::vector<std::shared_ptr<const RelayoutPlan>> phases);

  // `targets` are consecutive blocks of one prefix. Each is GFT_OK (sealed and held), GFT_PRESENT, or the reason why it and
  // all after it (GFT_CHAIN) were not made. Nothing is sealed of which a source byte was not verified. Throws GFT_INVALID
  // (targets that contradict each other; nothing done) and GFT_BUSY (another call is under way).
  Converted convert(std::span<const TargetSpec> targets, const std::string *source_parent, Clock::time_point deadline);
  // From any thread: the call under way, if any, stops before its next block.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

 private:
  struct Job;
  void check(std::span<const TargetSpec> targets, const std::string *source_parent) const;
  std::vector<std::string> source_hashes(std::span<const TargetSpec> targets) const;
  Outcome one(Job &job, const TargetSpec &target);
  Outcome load(Job &job, const TargetSpec &target);
  uint64_t first_source(uint64_t position) const { return position * in_target_ / phases_.size(); }

  const std::shared_ptr<Writer> writer_;
  const std::unique_ptr<Source> source_;
  const std::vector<uint32_t> shards_;
  const std::vector<std::shared_ptr<const RelayoutPlan>> phases_;
  const uint64_t in_target_;  // source blocks of one shard in a target block
  std::atomic<bool> cancelled_{false};
  std::mutex busy_;
  std::vector<std::unique_ptr<uint8_t[]>> payloads_;  // private copies of one target's sources
};

}  // namespace gft
