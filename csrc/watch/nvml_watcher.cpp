// The watcher's life: threads are started, supervised and let go; a seat whose call is overdue is given up.
// Nothing here calls NVML except the end, when no call is open any more.
#include "nvml_watcher.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>

#include "../support/fail.h"
#include "../support/fork_guard.h"
#include "../support/quiet.h"

namespace gft::watch {
namespace {

using Lock = std::unique_lock<std::mutex>;

constexpr int kEventThreads = 3;               // that may get stuck in a wait before events are given up
constexpr int64_t kOversleptNs = 100'000'000;  // more means that this process was stopped, not that the driver is slow

std::chrono::steady_clock::time_point at(int64_t ns) {
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(ns));
}

void run_init(Shared state, Seat &seat) {
  const nvml::Library &library = state->library;
  char version[96] = "";
  unsigned count = 0;
  auto code = state->ask(seat, "nvmlInit_v2", nullptr, [&] { return library.init(); });
  if (!code) return;
  if (*code == nvml::kSuccess) {
    if (!state->ask(seat, "nvmlSystemGetDriverVersion", nullptr,
                    [&] { return library.driver_version(version, sizeof version); }))
      return;
    auto counted = state->ask(seat, "nvmlDeviceGetCount_v2", nullptr, [&] { return library.count(&count); });
    if (!counted) return;
    if (*counted) code = counted;
  }
  version[sizeof version - 1] = 0;
  std::lock_guard lock(state->mutex);
  state->inited = true;
  state->initialised = *code == nvml::kSuccess;
  state->init_code = *code;
  state->driver = version;
  state->count = count;
}

// The call of `seat` is overdue. With the lock; returns the record to push without it.
Record give_up(NvmlState &state, Seat &seat) {
  seat.given_up = true;
  seat.stuck_in = seat.call;
  ++state.counts.stuck_calls;
  if (seat.about) seat.about->responsive = false;
  Record record = state.record(seat.source, "unresponsive", seat.about);
  const int64_t waited_ns = record.at_ns - seat.since;
  char text[160];
  std::snprintf(text, sizeof text, "%s has not returned for %.3g s", seat.call, static_cast<double>(waited_ns) / 1e9);
  record.text = text;
  record.facts.emplace_back("call", seat.call);
  record.facts.emplace_back("waited_ms", std::to_string(waited_ns / 1'000'000));
  return record;
}

// How long until a call is overdue; gives up those that are. With the lock, which it releases while records are pushed.
int64_t look(const Shared &state, Lock &lock) {
  std::vector<Record> records;
  bool again = false;
  int64_t next = now_ns() + state->deadline_ns;
  for (Seat &seat : state->seats) {
    if (!seat.call || seat.given_up) continue;
    const int64_t due = seat.since + seat.allowed;
    if (now_ns() < due) {
      next = std::min(next, due);
      continue;
    }
    Record record = give_up(*state, seat);
    if (seat.role == Seat::Role::events && !seat.about) {
      // It may have been one GPU's fault, so the event set is made anew; a wait that sticks again says nothing new.
      const bool hopeless = ++state->waits_stuck >= kEventThreads;
      again |= !hopeless;
      state->events_ready |= hopeless;
      if (state->waits_stuck > 1) continue;
    } else if (seat.role == Seat::Role::events) {
      again = true;  // without that GPU
    }
    records.push_back(std::move(record));
  }
  const bool restart = again && !state->stopping;
  state->told.notify_all();
  lock.unlock();
  for (Record &record : records) state->push(std::move(record));
  if (restart) try {
      seat_thread(state, Seat::Role::events);
    } catch (...) {  // no more threads: the poll goes on
    }
  lock.lock();
  return next;
}

void supervise(Shared state) {
  Lock lock(state->mutex);
  for (;;) {
    const bool over =
        std::all_of(state->seats.begin(), state->seats.end(), [](const Seat &s) { return s.done || s.given_up; });
    if (state->stopping && over) break;
    const int64_t next = look(state, lock);
    if (state->stopping)
      state->supervisor.wait_until(lock, at(std::min(next, now_ns() + 20'000'000)));
    else
      state->supervisor.wait_until(lock, at(next));
    // NOTE: after SIGSTOP or a suspend all calls look old. The time in which nothing of this process ran does not count, and
    // every call gets half of its deadline once more.
    if (const int64_t overslept = now_ns() - next; overslept > kOversleptNs)
      for (Seat &seat : state->seats)
        if (seat.call) seat.since = std::max(seat.since + overslept, now_ns() - seat.allowed / 2);
  }
  const bool clean = std::all_of(state->seats.begin(), state->seats.end(), [](const Seat &s) { return s.done; });
  const bool close = clean && state->initialised;
  lock.unlock();
  if (close) state->library.shutdown();
  lock.lock();
  state->ended = true;
  state->told.notify_all();
}

bool stuck(const NvmlState &state) {
  return std::any_of(state.seats.begin(), state.seats.end(), [](const Seat &s) { return s.given_up && !s.done; });
}

}  // namespace

std::string bdf_text(unsigned domain, unsigned bus, unsigned device) {
  char text[32];
  std::snprintf(text, sizeof text, "%04x:%02x:%02x", domain, bus, device);
  return text;
}

Record NvmlState::record(const char *source, const char *what, const WatchedGpu *gpu) const {
  Record out;
  out.source = source;
  out.what = what;
  out.at_ns = out.last_ns = now_ns();
  if (gpu) {
    out.index = gpu->index;
    out.uuid = gpu->uuid;
    out.bdf = gpu->bdf;
  }
  return out;
}

void NvmlState::push(Record record) noexcept { queue->push(std::move(record)); }

void seat_thread(const Shared &state, Seat::Role role, WatchedGpu *own) {
  Seat *seat = nullptr;
  {
    std::lock_guard lock(state->mutex);
    const bool polls = role == Seat::Role::gpu || role == Seat::Role::init;
    state->seats.push_back({.role = role, .source = polls ? "nvml_poll" : "nvml_event", .own = own});
    seat = &state->seats.back();
    if (role == Seat::Role::events) ++state->counts.event_threads;
  }
  auto life = [state, seat] {
    try {
      switch (seat->role) {
        case Seat::Role::init:
          run_init(state, *seat);
          break;
        case Seat::Role::gpu:
          run_gpu(state, *seat);
          break;
        case Seat::Role::events:
          run_events(state, *seat);
          break;
        case Seat::Role::system:
          run_system_events(state, *seat);
          break;
      }
    } catch (...) {  // no memory for a record; there is nobody else to tell
    }
    std::lock_guard lock(state->mutex);
    seat->done = true;
    state->supervisor.notify_all();
    state->told.notify_all();
  };
  try {
    SignalsBlocked quiet;
    std::thread made(life);
    static const char *const names[] = {"gft-nvml-init", "gft-nvml-gpu", "gft-nvml-event", "gft-nvml-sys"};
    pthread_setname_np(made.native_handle(), names[static_cast<int>(role)]);
    made.detach();
  } catch (const std::exception &why) {
    std::lock_guard lock(state->mutex);
    seat->done = true;
    fail(GFT_INTERNAL, "no thread for the NVML watcher: %s; check the limit on processes (ulimit -u)", why.what());
  }
}

NvmlWatcher::NvmlWatcher(std::shared_ptr<Queue> queue, const NvmlOptions &options)
    : made_in_((guard_forks(), fork_generation())),
      state_(std::make_shared<NvmlState>(nvml::open(options.library), std::move(queue))) {
  if (options.poll_s != 0 && !(options.poll_s >= 0.01 && options.poll_s <= 3600))
    fail(GFT_INVALID, "poll_s=%g; it must be 0 (events only) or between 0.01 and 3600 seconds", options.poll_s);
  if (!(options.call_deadline_s >= 0.05 && options.call_deadline_s <= 600))
    fail(GFT_INVALID, "call_deadline_s=%g; it must be between 0.05 and 600 seconds", options.call_deadline_s);
  if (!options.every && options.gpus.empty())
    fail(GFT_INVALID, "no GPU to watch was named; leave `gpus` out for all of them");
  state_->poll_ns = std::llround(options.poll_s * 1e9);
  state_->deadline_ns = std::llround(options.call_deadline_s * 1e9);
  if (!options.every)
    for (const std::string &wanted : options.gpus) state_->gpus.emplace_back().wanted = wanted;
}

NvmlWatcher::~NvmlWatcher() { stop(0); }

bool NvmlWatcher::mine() const { return fork_generation() == made_in_; }

void NvmlWatcher::start() {
  if (!mine()) fail(GFT_FORKED, "the NVML watcher belongs to the parent process; make one in this process");
  {
    std::lock_guard lock(state_->mutex);
    if (state_->started) fail(GFT_INVALID, "an NVML watcher starts once; make a new one");
    state_->started = true;
  }
  try {
    begin();
  } catch (...) {
    stop(0);
    throw;
  }
}

void NvmlWatcher::begin() {
  NvmlState &state = *state_;
  state.began_ns = now_ns();
  {
    SignalsBlocked quiet;
    std::thread made(supervise, state_);
    pthread_setname_np(made.native_handle(), "gft-nvml");
    made.detach();
  }
  seat_thread(state_, Seat::Role::init);
  Lock lock(state.mutex);
  state.told.wait(
      lock, [&] { return state.inited || state.seats.front().given_up || state.seats.front().done || state.stopping; });
  if (!state.inited)
    fail(GFT_TIMED_OUT, "%s has not returned within %g s; the NVIDIA driver is stuck: look at dmesg",
         state.seats.front().stuck_in, static_cast<double>(state.deadline_ns) / 1e9);
  if (state.init_code)
    fail(GFT_NOT_FOUND, "NVML (%s) cannot be used: %s; look at nvidia-smi", state.library.path.c_str(),
         nvml::told(state.library, state.init_code).c_str());
  if (state.gpus.empty())
    for (unsigned i = 0; i < state.count; ++i) state.gpus.emplace_back().wanted = std::to_string(i);
  std::vector<WatchedGpu *> all;
  for (WatchedGpu &gpu : state.gpus) all.push_back(&gpu);
  lock.unlock();
  for (WatchedGpu *gpu : all) seat_thread(state_, Seat::Role::gpu, gpu);
  lock.lock();
  state.told.wait(lock, [&] {
    return state.stopping || std::none_of(all.begin(), all.end(), [](WatchedGpu *gpu) {
             return gpu->phase == WatchedGpu::Phase::starting && gpu->responsive;
           });
  });
  for (const WatchedGpu *gpu : all)
    if (gpu->phase == WatchedGpu::Phase::absent &&
        (gpu->refusal == nvml::kInvalidArgument || gpu->refusal == nvml::kNotFound))
      fail(GFT_NOT_FOUND, "there is no GPU %s here: %s; look at nvidia-smi -L", gpu->wanted.c_str(),
           nvml::told(state.library, gpu->refusal).c_str());
  lock.unlock();
  seat_thread(state_, Seat::Role::events);
  if (state.library.system_events()) seat_thread(state_, Seat::Role::system);
  lock.lock();
  state.told.wait_until(lock, at(now_ns() + 2 * state.deadline_ns), [&] { return state.events_ready || state.stopping; });
}

bool NvmlWatcher::stop(double seconds) {
  if (!mine()) return true;
  NvmlState &state = *state_;
  Lock lock(state.mutex);
  state.stopping = true;
  state.lanes.notify_all();
  state.supervisor.notify_all();
  state.told.notify_all();
  if (!state.started) return true;
  const double bounded = std::isfinite(seconds) ? std::clamp(seconds, 0.0, 3600.0) : 3600.0;
  state.told.wait_until(lock, at(now_ns() + std::llround(bounded * 1e9)), [&] { return state.ended; });
  return state.ended && !stuck(state);
}

std::vector<WatchedGpu> NvmlWatcher::gpus() const {
  if (!mine()) return {};
  std::lock_guard lock(state_->mutex);
  return {state_->gpus.begin(), state_->gpus.end()};
}

std::string NvmlWatcher::driver() const {
  if (!mine()) return {};
  std::lock_guard lock(state_->mutex);
  return state_->driver;
}

Counts NvmlWatcher::counts() const {
  if (!mine()) return {};
  std::lock_guard lock(state_->mutex);
  return state_->counts;
}

bool NvmlWatcher::avoid(int index) {
  if (!mine()) return false;
  std::lock_guard lock(state_->mutex);
  for (WatchedGpu &gpu : state_->gpus) {
    if (gpu.index != index) continue;
    gpu.avoided = true;
    state_->lanes.notify_all();
    return true;
  }
  return false;
}

}  // namespace gft::watch
