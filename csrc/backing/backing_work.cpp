// What the backing's threads do. Out: find the sealed block, hand identity and payload to the log, which digests what it copied.
// Back: walk the chain over both places, claim slots, read many records at once, verify, seal each under its old identity.
#include <algorithm>
#include <utility>

#include "../support/together.h"
#include "backing.h"

namespace gft {
namespace {

// A log that is this far behind is too slow for the engine: the block is left out.
constexpr auto kAppendPatience = std::chrono::seconds(10);
constexpr size_t kBatchBlocks = 64;
constexpr uint64_t kBatchBytes = uint64_t{64} << 20;

disk::Key key_of(const Identity &block) {
  return {block.name_space, block.shard, block.position, block.epoch, block.payload_bytes,
          block.hash,       block.parent_link, block.link, block.digest};
}

}  // namespace

void Backing::take_commits(Lock &) {
  for (const disk::Settled &settled : log_->poll()) {
    if (in_log_ > 0) --in_log_;
    if (settled.status == GFT_OK) {
      ++stats_.spilled_blocks;
      stats_.spilled_bytes += writer_->core().geometry().slot_bytes;
      stats_.trouble.clear();
    } else {
      ++stats_.dropped_log;
      stats_.trouble = log_->stats().reason_text;
    }
  }
}

void Backing::spill_next(Lock &lock) {
  if (spills_.empty()) {
    take_commits(lock);
    progress_.notify_all();
    work_.wait(lock);
    return;
  }
  BlockName block = std::move(spills_.front());
  spills_.pop_front();
  spilling_ = true;
  uint64_t ticket = ++ticket_;
  lock.unlock();
  gft_status status = GFT_OK;
  std::string detail;
  try {
    Sealed sealed = writer_->find(block.hash, block.parent_or_null());
    Core &core = writer_->core();
    core.prefault_payload(sealed.slot);
    status = log_->append(key_of(identity_of(sealed.header)), core.payload(sealed.slot), ticket,
                          Clock::now() + kAppendPatience, &detail);
    if (status == GFT_DIGEST && !sealed.unchanged(core)) status = GFT_CHANGED;
  } catch (...) {
    Fail why = current_failure();
    status = why.code;
    detail = why.text;
  }
  lock.lock();
  spilling_ = false;
  if (status == GFT_OK)
    ++in_log_;
  else if (status == GFT_NOT_FOUND || status == GFT_CHANGED || status == GFT_CHAIN)
    ++stats_.dropped_evicted;
  else if (status != GFT_PRESENT) {
    ++stats_.dropped_log;
    stats_.trouble = detail.empty() ? gft_status_name(status) : detail;
  }
  take_commits(lock);
  if (spills_.empty()) progress_.notify_all();
}

void Backing::fetch_next(Lock &lock) {
  if (fetches_.empty()) {
    work_.wait(lock);
    return;
  }
  fetching_ = std::move(fetches_.front());
  fetches_.pop_front();
  lock.unlock();
  Fetched done = fetch_job(*fetching_);
  lock.lock();
  fetching_.reset();
  stats_.fetched_blocks += static_cast<uint64_t>(std::count(done.statuses.begin(), done.statuses.end(), GFT_OK));
  stats_.fetched_bytes += done.bytes;
  finished_.push_back(std::move(done));
  progress_.notify_all();
}

Fetched Backing::fetch_job(const Job &job) {
  Fetched out{job.id, {}, "", 0, 0};
  auto started = Clock::now();
  auto end = [&](gft_status status, std::string detail) {
    out.detail = std::move(detail);
    if (out.statuses.size() < job.blocks.size()) out.statuses.push_back(status);
    out.statuses.resize(job.blocks.size(), GFT_CHAIN);
  };
  try {
    writer_->check();
    Core &core = writer_->core();
    BackedWalk walk(&core, log_.get(), writer_->wanted(), {core.geometry().slot_bytes, &core.digest()});
    Why why = job.blocks.empty() ? Why::ok : walk.start(job.blocks[0].parent_or_null(), job.blocks[0].position);
    for (size_t i = 0; i < job.blocks.size() && why == Why::ok; ++i)
      why = job.blocks[i].position == job.blocks[0].position + i ? walk.step(job.blocks[i].hash) : Why::chain;
    auto chain = walk.chain();
    uint64_t tick = core.tick();
    for (const Place &place : chain)
      if (!place.on_disk) writer_->mark(place.sealed, Writer::Mark::touch, tick);
    for (size_t at = 0; at < chain.size();) {
      if (!chain[at].on_disk) {
        out.statuses.push_back(GFT_PRESENT);
        ++at;
      } else {
        at = fetch_run(job, chain, at, out);
      }
    }
    if (why != Why::ok) end(why_status(why), std::string("the prefix ends here: ") + why_text(why));
  } catch (...) {
    Fail why = current_failure();
    end(why.code, why.text);
  }
  out.seconds = std::chrono::duration<double>(Clock::now() - started).count();
  return out;
}

std::optional<Claimed> Backing::reserve(const disk::Key &key) {
  try {
    return writer_->reserve(key.hash, key.position, ~uint64_t{0});
  } catch (const Fail &why) {
    if (why.code != GFT_FULL) throw;
    return std::nullopt;
  }
}

size_t Backing::fetch_run(const Job &job, std::vector<Place> &chain, size_t first, Fetched &out) {
  {
    Lock lock(mutex_);
    if (job.cancelled || stop_) fail(GFT_CANCELLED, "the fetch was cancelled");
  }
  if (Clock::now() >= job.deadline) fail(GFT_TIMED_OUT, "the disk was too slow for this fetch; computing goes on instead");
  Core &core = writer_->core();
  uint64_t bytes = core.geometry().slot_bytes;
  size_t most = std::clamp<size_t>(kBatchBytes / bytes, 1, kBatchBlocks);
  std::vector<Claimed> claims;
  std::vector<disk::Read> reads;
  size_t published = 0;
  try {
    for (size_t i = first; i < chain.size() && chain[i].on_disk && claims.size() < most; ++i) {
      const disk::Key &key = chain[i].entry.key;
      auto claim = reserve(key);
      if (!claim && !claims.empty()) break;  // go on with those there was room for
      if (!claim) fail(GFT_FULL, "no slot of arena %s can be given to a block from disk; make the arena larger", core.path());
      claims.push_back(std::move(*claim));
      core.prefault_payload(claims.back().slot);
      reads.push_back({chain[i].entry, {{0, bytes, core.payload(claims.back().slot)}}, GFT_OK, ""});
    }
    log_->read(reads, job.deadline);
    // Once more as it lies in the arena: that is what gets sealed.
    std::vector<Digest> arrived(claims.size());
    together(log_->read_threads(), claims.size(), [&](size_t i) {
      if (reads[i].status == GFT_OK) arrived[i] = core.payload_digest(claims[i].slot);
    });
    for (; published < claims.size(); ++published) {
      if (reads[published].status != GFT_OK) {
        if (reads[published].status == GFT_DIGEST) log_->drop(reads[published].entry);
        throw Fail{reads[published].status, reads[published].detail};
      }
      bool sealed = writer_->publish_as(claims[published], identity_of(reads[published].entry.key),
                                        job.blocks[first + published].parent_or_null(), arrived[published], true);
      out.statuses.push_back(sealed ? GFT_OK : GFT_PRESENT);
      out.bytes += bytes;
    }
  } catch (...) {
    // The claim that publish_as refused has been given up by it; giving up twice does no harm.
    for (size_t i = published; i < claims.size(); ++i) writer_->give_up(claims[i]);
    throw;
  }
  return first + claims.size();
}

}  // namespace gft
