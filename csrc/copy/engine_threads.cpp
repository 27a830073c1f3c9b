// What the copy engine's threads do: choose, copy without any lock, settle.
// Loads are work for a request that waits; stores only protect, so they come second.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <utility>

#include "engine.h"
#include "load.h"

namespace gft {

std::shared_ptr<Engine> Engine::start(std::shared_ptr<Writer> writer, Layout layout, int threads) {
  if (threads < 1 || threads > 64)
    fail(GFT_INVALID, "a copy engine with %d threads; it must have between 1 and 64", threads);
  uint64_t payload = writer->core().geometry().slot_bytes;
  if (layout.block_bytes != payload)
    fail(GFT_MISMATCH, "the layout's blocks have %llu bytes, arena %s takes %llu; make the arena with slot_bytes=%llu",
         (unsigned long long)layout.block_bytes, writer->core().path(), (unsigned long long)payload,
         (unsigned long long)layout.block_bytes);
  writer->check();
  uint64_t slots = writer->core().geometry().slots;
  auto engine = std::make_shared<Engine>(std::move(writer), std::move(layout));
  // Blocks that are copied but wait for the head of the line keep their slots; a slow head must not use up the arena.
  engine->line_limit_ = std::clamp<uint64_t>(slots / 4, 1, 4 * static_cast<uint64_t>(threads));
  // The host's signal handlers must run in the host's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int i = 0; i < threads; ++i) {
      Lock lock(engine->mutex_);
      engine->threads_.emplace_back([engine] { engine->run(); });
      ++engine->threads_alive_;
    }
  } catch (const std::exception &why) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    engine->abandon();
    fail(GFT_INTERNAL, "cannot start %d copy threads: %s; check the process limit (ulimit -u)", threads, why.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return engine;
}

void Engine::run() {
  Lock lock(mutex_);
  // Failures of blocks become statuses further down. What still arrives here is lack of memory inside the queues: the
  // thread ends, and the deadlines of wait, cancel and close report it.
  try {
    while (work_on_something(lock)) {
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
  }
  --threads_alive_;
  progress_.notify_all();
}

bool Engine::work_on_something(Lock &lock) {
  std::shared_ptr<Job> load = load_to_work_on();
  if (load) {
    work_on_load(lock, std::move(load));
  } else if (!stores_.empty() && in_line_ < line_limit_) {
    work_on_store(lock);
  } else if (stop_ && stores_.empty()) {
    return false;
  } else {
    work_.wait(lock);
  }
  return true;
}

std::shared_ptr<Job> Engine::load_to_work_on() {
  for (auto &job : loads_)
    if (job->preparation != Job::Preparation::running) return job;
  return nullptr;
}

void Engine::work_on_load(Lock &lock, std::shared_ptr<Job> job) {
  if (!job->started) job->started = Job::Clock::now();
  if (job->preparation == Job::Preparation::none) {
    job->preparation = Job::Preparation::running;
    lock.unlock();
    Outcome end;
    auto found = find_chain(*writer_, job->blocks, end);
    lock.lock();
    job->found = std::move(found);
    job->preparation = Job::Preparation::done;
    // From the first block that cannot be used on, nothing is left to copy.
    for (size_t i = std::max(job->next, job->found.size()); i < job->blocks.size(); ++i)
      settle(*job, i, i == job->found.size() ? end.status : GFT_CHAIN, end.detail);
    work_.notify_all();
  }
  if (job->next >= job->found.size()) {
    std::erase(loads_, job);
    return;
  }
  size_t index = job->next++;
  if (job->next == job->found.size()) std::erase(loads_, job);
  lock.unlock();
  Outcome outcome = load_one(*writer_, layout_, job->blocks[index], job->found[index]);
  lock.lock();
  settle(*job, index, outcome.status, outcome.detail);
  if (outcome.status != GFT_OK && job->next < job->found.size()) {
    std::erase(loads_, job);
    for (size_t i = std::exchange(job->next, job->blocks.size()); i < job->found.size(); ++i) settle(*job, i, GFT_CHAIN, "");
  }
}

void Engine::work_on_store(Lock &lock) {
  lock.unlock();
  auto turn = line_.lock();
  lock.lock();
  if (stores_.empty() || in_line_ >= line_limit_) return;
  ++in_line_;
  StoreItem item = std::move(stores_.front());
  stores_.pop_front();
  if (item.job && !item.job->started) item.job->started = Job::Clock::now();
  lock.unlock();
  auto flight = line_.enter(std::move(item));
  turn.unlock();
  line_.copy(*flight);
  turn.lock();
  line_.leave(*flight, [&](const StoreLine::Flight &done) {
    Lock settling(mutex_);
    if (in_line_-- == line_limit_) work_.notify_all();
    if (done.item.job) {
      settle(*done.item.job, done.item.index, done.status, done.detail);
    } else {
      --marks_pending_;
      progress_.notify_all();
    }
  });
  turn.unlock();
  lock.lock();
}

}  // namespace gft
