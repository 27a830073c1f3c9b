// Queues, deadlines and threads of the backing; what the two threads do is in backing_work.cpp.
// mutex_ is never held during a copy, a read or a write.
#include "backing.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "../support/fork_guard.h"

namespace gft {
namespace {

Backing::Clock::time_point after(double seconds) {
  double bounded = std::isnan(seconds) ? 0 : std::clamp(seconds, 0.0, 3e7);
  return Backing::Clock::now() + std::chrono::duration_cast<Backing::Clock::duration>(std::chrono::duration<double>(bounded));
}

}  // namespace

Backing::Backing(std::shared_ptr<Writer> writer, std::shared_ptr<disk::Log> log, size_t queue_blocks)
    : writer_(std::move(writer)),
      log_(std::move(log)),
      queue_blocks_(queue_blocks),
      fork_generation_(fork_generation()),
      kept_(writer_->keep_lane()) {}

Backing::~Backing() {
  for (std::thread &thread : threads_)
    if (thread.joinable()) thread.detach();
}

std::shared_ptr<Backing> Backing::start(std::shared_ptr<Writer> writer, std::shared_ptr<disk::Log> log, size_t queue_blocks) {
  if (queue_blocks < 1) fail(GFT_INVALID, "a spill queue of no blocks; it must hold at least one");
  writer->check();
  auto backing = std::make_shared<Backing>(std::move(writer), std::move(log), queue_blocks);
  // The host's signal handlers must run in the host's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (auto work : {&Backing::spill_next, &Backing::fetch_next}) {
      Lock lock(backing->mutex_);
      backing->threads_.emplace_back([backing, work] { backing->run(work); });
      ++backing->threads_alive_;
    }
  } catch (const std::exception &why) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    backing->close(1);
    fail(GFT_INTERNAL, "cannot start the backing's threads: %s; check the process limit (ulimit -u)", why.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return backing;
}

void Backing::check() const {
  if (fork_generation_ != fork_generation())
    fail(GFT_FORKED, "this backing's threads live in the parent of this forked process; make one here");
}

void Backing::run(void (Backing::*work)(Lock &)) {
  Lock lock(mutex_);
  // Failures of blocks become statuses further down; what still arrives here is lack of memory. The thread ends, and the
  // deadlines of wait and close report it.
  try {
    while (!stop_) (this->*work)(lock);
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
  }
  --threads_alive_;
  progress_.notify_all();
}

void Backing::spill(std::vector<BlockName> blocks) {
  check();
  Lock lock(mutex_);
  if (closing_) fail(GFT_CLOSED, "the backing was closed; make a new one");
  for (BlockName &block : blocks) spills_.push_back(std::move(block));
  // The newest blocks belong to requests that are open; the oldest have had their chance.
  while (spills_.size() > queue_blocks_) {
    spills_.pop_front();
    ++stats_.dropped_queue;
  }
  work_.notify_all();
}

void Backing::fetch(int64_t job_id, std::vector<BlockName> blocks, double seconds) {
  check();
  auto job = std::make_shared<Job>(Job{job_id, std::move(blocks), after(seconds)});
  Lock lock(mutex_);
  if (closing_) fail(GFT_CLOSED, "the backing was closed; make a new one");
  fetches_.push_back(std::move(job));
  work_.notify_all();
}

void Backing::cancel(const std::vector<int64_t> &job_ids) {
  check();
  Lock lock(mutex_);
  auto wanted = [&](int64_t id) { return std::find(job_ids.begin(), job_ids.end(), id) != job_ids.end(); };
  if (fetching_ && wanted(fetching_->id)) fetching_->cancelled = true;
  std::erase_if(fetches_, [&](const std::shared_ptr<Job> &job) {
    if (!wanted(job->id)) return false;
    finished_.push_back({job->id, std::vector<gft_status>(job->blocks.size(), GFT_CANCELLED), "", 0, 0});
    return true;
  });
  progress_.notify_all();
}

std::vector<Fetched> Backing::poll() {
  check();
  Lock lock(mutex_);
  return std::exchange(finished_, {});
}

bool Backing::wait(double seconds) {
  check();
  auto deadline = after(seconds);
  Lock lock(mutex_);
  bool idle = progress_.wait_until(lock, deadline, [this] {
    return threads_alive_ == 0 || (spills_.empty() && !spilling_ && fetches_.empty() && !fetching_);
  });
  if (!idle) return false;
  lock.unlock();
  bool flushed = log_->flush(deadline);
  lock.lock();
  take_commits(lock);
  return flushed && threads_alive_ > 0;
}

BackingStats Backing::stats() {
  check();
  Lock lock(mutex_);
  take_commits(lock);
  stats_.spill_queue = spills_.size() + in_log_;
  return stats_;
}

bool Backing::close(double seconds) {
  check();
  auto deadline = after(seconds);
  Lock lock(mutex_);
  closing_ = true;
  progress_.wait_until(lock, deadline, [this] { return threads_alive_ == 0 || (spills_.empty() && !spilling_); });
  stats_.dropped_queue += spills_.size();
  spills_.clear();
  if (fetching_) fetching_->cancelled = true;
  stop_ = true;
  work_.notify_all();
  if (!progress_.wait_until(lock, deadline, [this] { return threads_alive_ == 0; })) return false;
  auto threads = std::exchange(threads_, {});
  lock.unlock();
  for (std::thread &thread : threads) thread.join();
  bool flushed = log_->flush(deadline);
  lock.lock();
  take_commits(lock);
  kept_.reset();
  return flushed;
}

}  // namespace gft
