// What the copy engine's threads do: choose, copy without any lock, settle.
// Loads are work for a request that waits; stores only protect, so they come second.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine.h"
#include "load.h"

namespace gft {

std::shared_ptr<Engine> Engine::start(std::shared_ptr<Writer> writer, Layout layout, int threads, const MakeMover &make,
                                      PaceRules pace) {
  if (threads < 1 || threads > 64)
    fail(GFT_INVALID, "a copy engine with %d threads; it must have between 1 and 64", threads);
  uint64_t payload = writer->core().geometry().slot_bytes;
  if (layout.block_bytes != payload)
    fail(GFT_MISMATCH, "the layout's blocks have %llu bytes, arena %s takes %llu; make the arena with slot_bytes=%llu",
         (unsigned long long)layout.block_bytes, writer->core().path(), (unsigned long long)payload,
         (unsigned long long)layout.block_bytes);
  writer->check();
  uint64_t slots = writer->core().geometry().slots;
  auto mover = make(writer, layout);
  uint64_t batch = std::max<uint64_t>(mover->batch(), 1);
  auto engine = std::make_shared<Engine>(std::move(writer), std::move(layout), std::move(mover), pace);
  // Blocks that are copied but wait for the head of the line keep their slots; a slow head must not use up the arena.
  engine->line_limit_ = std::clamp<uint64_t>(slots / 4, 1, 4 * batch * static_cast<uint64_t>(threads));
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
    if (double pause = pause_before_stores(); pause > 0)
      work_.wait_for(lock, std::chrono::duration<double>(pause));
    else
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
  size_t from = job->next, count = std::min(std::max<size_t>(mover_->batch(), 1), job->found.size() - from);
  job->next += count;
  if (job->next == job->found.size()) std::erase(loads_, job);
  lock.unlock();
  auto outcomes = load_some(*writer_, *mover_, *job, from, count);
  lock.lock();
  bool bad = false;
  for (size_t i = 0; i < count; ++i) {
    settle(*job, from + i, outcomes[i].status, outcomes[i].detail);
    bad = bad || outcomes[i].status != GFT_OK;
  }
  if (bad && job->next < job->found.size()) {
    std::erase(loads_, job);
    for (size_t i = std::exchange(job->next, job->blocks.size()); i < job->found.size(); ++i) settle(*job, i, GFT_CHAIN, "");
  }
}

void Engine::work_on_store(Lock &lock) {
  lock.unlock();
  auto turn = line_.lock();
  lock.lock();
  if (stores_.empty() || in_line_ >= line_limit_) return;
  // As many as go in one batch; a mark ends it, because it counts for the stores before it.
  size_t batch = std::max<size_t>(mover_->batch(), 1);
  std::vector<StoreItem> items;
  while (!stores_.empty() && in_line_ < line_limit_ && items.size() < batch) {
    ++in_line_;
    items.push_back(std::move(stores_.front()));
    stores_.pop_front();
    const StoreItem &item = items.back();
    if (item.job && !item.job->started) item.job->started = Job::Clock::now();
    if (item.kind != StoreItem::Kind::block) break;
  }
  lock.unlock();
  std::vector<std::shared_ptr<StoreLine::Flight>> flights;
  for (StoreItem &item : items) flights.push_back(line_.enter(std::move(item)));
  turn.unlock();
  auto claimed = static_cast<uint64_t>(
      std::count_if(flights.begin(), flights.end(), [](const auto &flight) { return flight->claimed.has_value(); }));
  if (claimed) {
    lock.lock();
    pace_.spend(seconds_now(), claimed * layout_.block_bytes);
    lock.unlock();
  }
  line_.copy(flights);
  turn.lock();
  auto done = [&](const StoreLine::Flight &done) {
    Lock settling(mutex_);
    if (in_line_-- == line_limit_) work_.notify_all();
    if (done.item.job) {
      settle(*done.item.job, done.item.index, done.status, done.detail);
    } else {
      --marks_pending_;
      progress_.notify_all();
    }
  };
  for (const auto &flight : flights) line_.leave(*flight, done);
  turn.unlock();
  lock.lock();
}

}  // namespace gft
