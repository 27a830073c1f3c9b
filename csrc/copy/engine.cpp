// Queues, results and deadlines of the copy engine; the threads' side is in engine_threads.cpp.
// Lock order: the store line's lock, then mutex_.
#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "../support/fork_guard.h"

namespace gft {
namespace {

std::chrono::steady_clock::time_point after(double seconds) {
  // A year is as good as forever and does not overflow the clock.
  double bounded = std::isnan(seconds) ? 0 : std::clamp(seconds, 0.0, 3e7);
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(bounded));
}

constexpr double kAbandonSeconds = 5;
constexpr double kCancelSeconds = 30;

}  // namespace

Engine::Engine(std::shared_ptr<Writer> writer, Layout layout, std::shared_ptr<Mover> mover, PaceRules pace)
    : writer_(std::move(writer)),
      layout_(std::move(layout)),
      fork_generation_(fork_generation()),
      kept_(writer_->keep_lane()),
      mover_(std::move(mover)),
      line_(writer_, *mover_),
      pace_(pace) {}

Engine::~Engine() {
  for (std::thread &thread : threads_)
    if (thread.joinable()) thread.detach();
}

void Engine::check() const {
  if (fork_generation_ != fork_generation())
    fail(GFT_FORKED, "this copy engine's threads live in the parent of this forked process; make one here");
}

void Engine::submit(bool load, int64_t job_id, std::vector<BlockSpec> blocks, uint64_t stream) {
  check();
  for (const BlockSpec &block : blocks) {
    if (block.block_id >= layout_.num_blocks)
      fail(GFT_INVALID, "job %lld: block id %llu is outside the layout of %llu blocks", (long long)job_id,
           (unsigned long long)block.block_id, (unsigned long long)layout_.num_blocks);
    if (block.hash.empty() || block.hash.size() > kHashBytes || (block.parent && block.parent->size() > kHashBytes) ||
        block.parent.has_value() != (block.position > 0))
      fail(GFT_INVALID,
           "job %lld, block at position %llu: a hash must have 1 to %u bytes, and only position 0 has no parent",
           (long long)job_id, (unsigned long long)block.position, kHashBytes);
  }
  auto job = std::make_shared<Job>();
  job->id = job_id;
  job->load = load;
  job->blocks = std::move(blocks);
  job->statuses.assign(job->blocks.size(), GFT_OK);
  job->settled.assign(job->blocks.size(), false);
  job->ready = mover_->after(stream);
  job->remaining = job->blocks.size();

  Lock lock(mutex_);
  must_be_new(job_id);
  active_[job_id] = job;
  if (job->blocks.empty()) {
    complete(*job);
    return;
  }
  if (load) {
    loads_.push_back(job);
  } else {
    backlog_blocks_ += job->blocks.size();
    for (size_t i = 0; i < job->blocks.size(); ++i) stores_.push_back({job, i});
  }
  work_.notify_all();
}

void Engine::must_be_new(int64_t job_id) const {
  if (closing_) fail(GFT_CLOSED, "the copy engine was closed; make a new one");
  if (active_.contains(job_id))
    fail(GFT_INVALID, "job %lld is queued or running already; use another id", (long long)job_id);
}

void Engine::pin(int64_t job_id, std::vector<std::string> hashes, uint32_t until) {
  check();
  auto job = std::make_shared<Job>();
  job->id = job_id;
  job->load = false;
  job->statuses.assign(1, GFT_OK);
  job->settled.assign(1, false);
  job->remaining = 1;
  Lock lock(mutex_);
  must_be_new(job_id);
  active_[job_id] = job;
  ++backlog_blocks_;
  stores_.push_back({job, 0, StoreItem::Kind::pin, std::move(hashes), {}, until});
  work_.notify_one();
}

void Engine::mark(std::vector<std::string> hashes, Writer::Mark how) {
  check();
  Lock lock(mutex_);
  if (closing_) fail(GFT_CLOSED, "the copy engine was closed; make a new one");
  ++marks_pending_;
  stores_.push_back({nullptr, 0, StoreItem::Kind::mark, std::move(hashes), how});
  work_.notify_one();
}

void Engine::complete(Job &job) {
  bool bad = false;
  for (size_t i = 0; job.load && i < job.statuses.size(); ++i) {
    // What lies behind a bad block is not a prefix any more.
    if (bad && job.statuses[i] != GFT_CANCELLED) job.statuses[i] = GFT_CHAIN;
    bad = bad || job.statuses[i] != GFT_OK;
  }
  for (size_t i = 0; i < job.blocks.size(); ++i) job.bytes += job.statuses[i] == GFT_OK ? layout_.block_bytes : 0;
  if (job.started) job.seconds = std::chrono::duration<double>(Job::Clock::now() - *job.started).count();
  auto active = active_.find(job.id);
  finished_.push_back(active->second);
  active_.erase(active);
  progress_.notify_all();
}

void Engine::settle(Job &job, size_t index, gft_status status, const std::string &detail) {
  if (job.settled[index]) return;
  job.settled[index] = true;
  job.statuses[index] = status;
  if (job.detail.empty()) job.detail = detail;
  if (!job.load) --backlog_blocks_;
  if (--job.remaining == 0) complete(job);
}

void Engine::drop_queued(Job &job) {
  job.unwanted = true;
  if (job.load) {
    size_t from = std::exchange(job.next, job.blocks.size());
    loads_.erase(std::remove_if(loads_.begin(), loads_.end(), [&](auto &queued) { return queued.get() == &job; }),
                 loads_.end());
    // What lies behind the found chain was settled when the job was prepared.
    size_t end = job.preparation == Job::Preparation::done ? job.found.size() : job.blocks.size();
    for (size_t i = from; i < end; ++i) settle(job, i, GFT_CANCELLED, "");
    return;
  }
  std::vector<size_t> indices;
  std::erase_if(stores_, [&](const StoreItem &item) {
    if (item.job.get() == &job) indices.push_back(item.index);
    return item.job.get() == &job;
  });
  for (size_t index : indices) settle(job, index, GFT_CANCELLED, "");
}

void Engine::cancel(const std::vector<int64_t> &job_ids) {
  check();
  Lock lock(mutex_);
  std::vector<std::shared_ptr<Job>> jobs;
  for (int64_t id : job_ids)
    if (auto active = active_.find(id); active != active_.end()) jobs.push_back(active->second);
  for (auto &job : jobs) drop_queued(*job);
  bool stopped = wait_for(lock, after(kCancelSeconds), [&] {
    return std::all_of(jobs.begin(), jobs.end(), [](auto &job) { return job->remaining == 0; });
  });
  if (!stopped)
    fail(GFT_TIMED_OUT,
         "a block of a cancelled job was still being copied after %.0f s; the machine is stuck or the memory "
         "of the layout is gone",
         kCancelSeconds);
}

std::vector<std::shared_ptr<Job>> Engine::poll() {
  check();
  Lock lock(mutex_);
  watch(lock);
  return std::exchange(finished_, {});
}

bool Engine::wait(double seconds) {
  check();
  Lock lock(mutex_);
  return wait_for(lock, after(seconds), [this] { return idle(); });
}

void Engine::backlog(uint64_t &blocks, uint64_t &bytes) {
  check();
  Lock lock(mutex_);
  blocks = backlog_blocks_;
  bytes = backlog_blocks_ * layout_.block_bytes;
}

void Engine::step(double seconds) {
  check();
  Lock lock(mutex_);
  pace_.step(seconds_now(), seconds);
}

double Engine::pause_before_stores() {
  // Nobody's step is at stake any more once the engine closes.
  if (closing_) return 0;
  return pace_.wait(seconds_now());
}

std::vector<std::pair<std::string, double>> Engine::facts() {
  check();
  auto facts = mover_->facts();
  Lock lock(mutex_);
  facts.emplace_back("store_rate", pace_.rate());
  facts.emplace_back("usual_step_seconds", pace_.usual_step());
  return facts;
}

void Engine::watch(Lock &) {
  if (active_.empty() || !mover_->stuck()) return;
  auto jobs = active_;
  for (auto &[id, job] : jobs) {
    drop_queued(*job);
    // A load is different: its target is the engine's memory, which nobody may have while a device could still write there.
    if (job->load) continue;
    job->given_up = true;
    for (size_t i = 0; i < job->statuses.size(); ++i)
      settle(*job, i, GFT_DEVICE, "a call into the device's driver does not come back; the device is wedged, end this process");
  }
}

bool Engine::wait_for(Lock &lock, Job::Clock::time_point deadline, const std::function<bool()> &done) {
  while (true) {
    auto slice = std::min(deadline, Job::Clock::now() + std::chrono::milliseconds(100));
    if (progress_.wait_until(lock, slice, done)) return true;
    watch(lock);
    if (done()) return true;
    if (slice == deadline) return false;
  }
}

bool Engine::close(double seconds) {
  check();
  Lock lock(mutex_);
  closing_ = true;
  auto deadline = after(seconds);
  wait_for(lock, deadline, [this] { return idle(); });
  auto jobs = active_;
  for (auto &[id, job] : jobs) drop_queued(*job);
  marks_pending_ -= stores_.size();
  stores_.clear();
  stop_ = true;
  work_.notify_all();
  if (!progress_.wait_until(lock, deadline, [this] { return threads_alive_ == 0; })) return false;
  auto threads = std::exchange(threads_, {});
  lock.unlock();
  for (std::thread &thread : threads) thread.join();
  double left = std::chrono::duration<double>(deadline - Job::Clock::now()).count();
  bool done = mover_->finish(std::max(left, 0.1));
  lock.lock();
  // A slot that a device may still write to keeps its lane's lock until this process ends.
  if (kept_ && (!done || line_.holds_slots())) new Writer::LaneKept(kept_);
  kept_.reset();
  return done;
}

void Engine::abandon() noexcept {
  if (fork_generation_ != fork_generation()) return;  // the threads never existed here; their references keep us alive
  try {
    {
      Lock lock(mutex_);
      auto jobs = active_;
      for (auto &[id, job] : jobs) drop_queued(*job);
    }
    (void)close(kAbandonSeconds);
  } catch (...) {
  }
}

}  // namespace gft
