// The order is: sources found, sources copied and verified, slot claimed, converted, sealed. A kill at any point leaves a
// WRITING slot that is given to somebody else, or a whole block; never one that is half converted.
#include "convert.h"

#include <algorithm>

namespace gft {

using ull = unsigned long long;

struct Converter::Job {
  std::vector<std::unique_ptr<SourceChain>> chains;  // per shard
  std::vector<Outcome> ends;
  uint64_t first = 0;            // position of the chains' first block
  uint64_t loaded = UINT64_MAX;  // position of the first source block that lies in payloads_, verified
  uint64_t loaded_phase = 0;     // of whose ranges
  Clock::time_point deadline;
};

Converter::Converter(std::shared_ptr<Writer> writer, std::unique_ptr<Source> source, std::vector<uint32_t> shards,
                     std::vector<std::shared_ptr<const RelayoutPlan>> phases)
    : writer_(std::move(writer)),
      source_(std::move(source)),
      shards_(std::move(shards)),
      phases_(std::move(phases)),
      in_target_(shards_.empty() || phases_.empty() ? 0 : phases_[0]->source_bytes.size() / shards_.size()) {
  if (in_target_ == 0 || in_target_ * shards_.size() != phases_[0]->source_bytes.size() ||
      (in_target_ > 1 && phases_.size() > 1))
    fail(GFT_INVALID, "a converter of %zu shards and %zu phases: every phase takes as many source blocks of each shard, and "
         "either a target block is made of several source blocks or the reverse; plan it again",
         shards_.size(), phases_.size());
  uint64_t room = writer_->core().geometry().slot_bytes;
  for (const auto &phase : phases_) {
    if (phase->target_bytes != room)
      fail(GFT_MISMATCH, "a relayout plan makes payloads of %llu bytes, arena %s takes %llu; plan for its layout",
           (ull)phase->target_bytes, writer_->core().path(), (ull)room);
    for (uint64_t bytes : phase->source_bytes)
      if (bytes != source_->payload_bytes() || phase->source_bytes.size() != phases_[0]->source_bytes.size())
        fail(GFT_MISMATCH, "a relayout plan reads payloads of %llu bytes, those in %s have %llu; plan for their layout",
             (ull)bytes, source_->where(), (ull)source_->payload_bytes());
  }
  for (size_t i = 0; i < phases_[0]->source_bytes.size(); ++i)
    payloads_.push_back(std::make_unique_for_overwrite<uint8_t[]>(source_->payload_bytes()));
}

void Converter::check(std::span<const TargetSpec> targets, const std::string *source_parent) const {
  for (size_t i = 0; i < targets.size(); ++i) {
    const TargetSpec &target = targets[i];
    bool follows = i == 0 ? target.parent.has_value() == (target.position > 0)
                          : target.parent == targets[i - 1].hash && target.position == targets[i - 1].position + 1;
    bool shared = i > 0 && first_source(target.position) == first_source(targets[i - 1].position);
    if (!follows || target.sources.size() != in_target_ || (shared && target.sources != targets[i - 1].sources) ||
        target.position > (uint64_t{1} << 40))
      fail(GFT_INVALID,
           "target %zu of a conversion (position %llu, %zu source blocks): targets follow each other, each names its parent "
           "and %llu source blocks; convert one prefix at a time",
           i, (ull)target.position, target.sources.size(), (ull)in_target_);
    for (const std::string &name : target.sources)
      if (name.empty() || name.size() > kHashBytes)
        fail(GFT_INVALID, "a source block hash of %zu bytes; it must have between 1 and %u", name.size(), kHashBytes);
  }
  if (!targets.empty() && (source_parent != nullptr) != (first_source(targets[0].position) > 0))
    fail(GFT_INVALID, "a conversion from source position %llu %s a parent; only position 0 has none",
         (ull)first_source(targets[0].position), source_parent ? "with" : "without");
}

std::vector<std::string> Converter::source_hashes(std::span<const TargetSpec> targets) const {
  std::vector<std::string> hashes;
  for (size_t i = 0; i < targets.size(); ++i)
    if (i == 0 || first_source(targets[i].position) != first_source(targets[i - 1].position))
      hashes.insert(hashes.end(), targets[i].sources.begin(), targets[i].sources.end());
  return hashes;
}

Converted Converter::convert(std::span<const TargetSpec> targets, const std::string *source_parent,
                             Clock::time_point deadline) {
  check(targets, source_parent);
  std::unique_lock alone(busy_, std::try_to_lock);
  if (!alone) fail(GFT_BUSY, "this converter is at work in another thread; make one for each");
  cancelled_.store(false, std::memory_order_relaxed);
  Clock::time_point began = Clock::now();
  Converted result;
  result.statuses.assign(targets.size(), GFT_CHAIN);
  Job job;
  job.deadline = deadline;
  Outcome outcome;
  try {
    writer_->check();
    if (!targets.empty()) {
      job.first = first_source(targets[0].position);
      auto hashes = source_hashes(targets);
      for (uint32_t shard : shards_) {
        job.chains.push_back(source_->find(shard, source_parent, job.first, hashes, job.ends.emplace_back()));
        source_->keep(*job.chains.back(), *writer_);
      }
    }
  } catch (...) {
    Fail why = current_failure();
    outcome = {why.code, why.text};
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    if (outcome.status == GFT_OK) outcome = one(job, targets[i]);
    result.statuses[i] = outcome.status;
    if (outcome.status == GFT_OK) result.bytes += writer_->core().geometry().slot_bytes;
    if (outcome.status == GFT_PRESENT) outcome.status = GFT_OK;
    if (outcome.status == GFT_OK) continue;
    result.detail = outcome.detail;
    break;
  }
  result.seconds = std::chrono::duration<double>(Clock::now() - began).count();
  return result;
}

// Makes one block. GFT_PRESENT when it is there already: its sources are not even looked at.
Outcome Converter::one(Job &job, const TargetSpec &target) {
  if (cancelled_.load(std::memory_order_relaxed)) return {GFT_CANCELLED, "the conversion was cancelled"};
  if (Clock::now() >= job.deadline) return {GFT_TIMED_OUT, "the conversion's deadline passed"};
  try {
    const std::string *parent = target.parent ? &*target.parent : nullptr;
    Why unused;
    // Room is taken only for blocks that can be made.
    if (candidates(writer_->core(), writer_->wanted(), target.hash, static_cast<int64_t>(target.position), unused).empty()) {
      Outcome outcome = load(job, target);
      if (outcome.status != GFT_OK) return outcome;
    }
    auto claim = Claim::open(writer_, target.hash, parent, target.position);
    if (!claim) return {GFT_PRESENT, ""};
    Outcome outcome = load(job, target);
    if (outcome.status != GFT_OK) return outcome;  // the claim gives its slot back
    writer_->core().prefault_payload(claim->slot());
    std::vector<const uint8_t *> sources;
    for (const auto &payload : payloads_) sources.push_back(payload.get());
    phases_[target.position % phases_.size()]->run(sources.data(), claim->payload());
    claim->seal();
    return {};
  } catch (...) {
    Fail why = current_failure();
    return {why.code, why.text};
  }
}

// Gets what this target needs into payloads_, verified; nothing to do when the target before was made of the same.
Outcome Converter::load(Job &job, const TargetSpec &target) {
  uint64_t first = first_source(target.position), phase = target.position % phases_.size();
  if (job.loaded == first && (job.loaded_phase == phase || source_->reads_all())) return {};
  job.loaded = UINT64_MAX;
  for (uint64_t block = 0; block < in_target_; ++block)
    for (size_t i = 0; i < shards_.size(); ++i) {
      uint64_t index = first - job.first + block, number = block * shards_.size() + i;
      if (index >= job.chains[i]->length()) {
        if (job.ends[i].status == GFT_OK) return {GFT_NOT_FOUND, "a source block is missing"};
        return job.ends[i];
      }
      auto &ranges = phases_[phase]->ranges(number);
      Outcome outcome = job.chains[i]->read(index, ranges, payloads_[number].get(), job.deadline);
      if (outcome.status != GFT_OK) return outcome;
    }
  job.loaded = first;
  job.loaded_phase = phase;
  return {};
}

}  // namespace gft
