// The event thread: one set for all GPUs, a wait with a timeout, a record for every event.
// What NVML leaves undefined is made anew: a set after a failed registration, or one whose GPU was lost.
#include <algorithm>
#include <chrono>

#include "nvml_state.h"

namespace gft::watch {
namespace {

using Lock = std::unique_lock<std::mutex>;

constexpr unsigned kWaitMs = 500;  // how soon a stop is noticed, and a GPU that is to be taken in again
constexpr int64_t kPauseNs = 20'000'000, kLongestPauseNs = 1'000'000'000;
constexpr int kEarly = 3;
constexpr uint64_t kNoXid = 0, kUnknownXid = 999;
// After these the driver may not answer for that GPU any more: lost, firmware silent, firmware dead, memory subsystem.
constexpr uint64_t kSilencing[] = {79, 119, 120, 175};

std::chrono::steady_clock::time_point in(int64_t ns) {
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(now_ns() + ns));
}

class Events {
 public:
  Events(NvmlState &state, Seat &seat) : state_(state), seat_(seat) {}

  // False when the thread has to end: it was given up.
  bool rebuild() {
    nvml::EventSet fresh = nullptr;
    std::vector<WatchedGpu *> members;
    for (bool whole = false; !whole;) {
      auto code = state_.ask(seat_, "nvmlEventSetCreate", nullptr, [&] { return state_.library.set_create(&fresh); });
      if (!code) return false;
      if (*code) return complain(*code, "nvmlEventSetCreate");
      members.clear();
      whole = true;
      for (WatchedGpu *gpu : candidates()) {
        const uint64_t mask = gpu->supported & nvml::kWanted;
        if (!mask) continue;
        auto said = state_.ask(seat_, "nvmlDeviceRegisterEvents", gpu,
                               [&] { return state_.library.register_events(gpu->handle, mask, fresh); });
        if (!said && given_up()) return false;
        if (!said) continue;  // to be avoided since a moment ago
        if (*said == nvml::kSuccess) {
          members.push_back(gpu);
          continue;
        }
        // NOTE: the set is undefined now (NVML API reference), so it is given back and filled again without this GPU.
        refuse(*gpu, *said);
        if (!give_back(fresh)) return false;
        whole = false;
        break;
      }
    }
    // Events that wait in the former set are read before it goes; what came in between is in both, and better twice than
    // never.
    if (set_) {
      for (nvml::EventData data{}; take(&data, 0) == nvml::kSuccess;) deliver(data);
      if (given_up() || !give_back(set_)) return false;
    }
    set_ = fresh;
    std::lock_guard lock(state_.mutex);
    for (WatchedGpu &gpu : state_.gpus) gpu.registered = 0;
    for (WatchedGpu *gpu : members) gpu->registered = gpu->supported & nvml::kWanted;
    ++state_.counts.sets;
    state_.events_ready = true;
    state_.told.notify_all();
    return true;
  }

  void run() {
    if (!rebuild()) return;
    while (!stopping()) {
      if (!set_) {  // none could be made; the poll goes on meanwhile
        if (!pause() || !rebuild()) return;
        continue;
      }
      nvml::EventData data{};
      const int64_t began = now_ns();
      auto code = take(&data, kWaitMs);
      if (!code) return;
      // A wait may be over early, but one that never waits is as bad as an error.
      const bool early = *code == nvml::kTimeout && now_ns() - began < kWaitMs * 100'000LL;
      early_ = early ? early_ + 1 : 0;
      if (*code == nvml::kSuccess) {
        deliver(data);
      } else if (*code != nvml::kTimeout || early_ > kEarly) {
        const bool gone = (*code == nvml::kGpuIsLost || *code == nvml::kResetRequired) && somebody_is_lost();
        if (!gone && !complain(*code, "nvmlEventSetWait_v2")) return;
        if (gone || errors_ % 8 == 0) {
          if (!rebuild()) return;
        }
        continue;
      }
      if (errors_) recovered();
      if (wants_in() && !rebuild()) return;
    }
    if (set_) give_back(set_);
  }

 private:
  bool stopping() {
    std::lock_guard lock(state_.mutex);
    return state_.stopping;
  }
  bool given_up() {
    std::lock_guard lock(state_.mutex);
    return seat_.given_up;
  }

  std::vector<WatchedGpu *> candidates() {
    std::lock_guard lock(state_.mutex);
    std::vector<WatchedGpu *> out;
    for (WatchedGpu &gpu : state_.gpus)
      if (gpu.watchable()) out.push_back(&gpu);
    return out;
  }

  // A GPU that is fine again and not in the set.
  bool wants_in() {
    std::lock_guard lock(state_.mutex);
    return std::any_of(state_.gpus.begin(), state_.gpus.end(), [](const WatchedGpu &gpu) {
      return gpu.watchable() && !gpu.registered && gpu.supported & nvml::kWanted;
    });
  }

  std::optional<nvml::Return> take(nvml::EventData *data, unsigned timeout_ms) {
    return state_.ask(
        seat_, "nvmlEventSetWait_v2", nullptr, [&] { return state_.library.set_wait(set_, data, timeout_ms); },
        timeout_ms * 1'000'000LL);
  }

  bool give_back(nvml::EventSet &set) {
    nvml::EventSet old = set;
    set = nullptr;
    return state_.ask(seat_, "nvmlEventSetFree", nullptr, [&] { return state_.library.set_free(old); }).has_value();
  }

  void refuse(WatchedGpu &gpu, nvml::Return code) {
    Record record;
    {
      std::lock_guard lock(state_.mutex);
      gpu.refuses_events = true;
      gpu.kicked = true;  // it may be lost
      state_.lanes.notify_all();
      record = state_.record("nvml_event", "error", &gpu);
    }
    record.code = code;
    record.text = "its events cannot be registered: " + nvml::told(state_.library, code);
    state_.push(std::move(record));
  }

  // The wait says that some GPU is lost, but not which: every GPU's own thread asks. True when one of the set is.
  bool somebody_is_lost() {
    Lock lock(state_.mutex);
    std::vector<std::pair<WatchedGpu *, uint64_t>> asked;
    for (WatchedGpu &gpu : state_.gpus) {
      if (!gpu.registered) continue;
      asked.emplace_back(&gpu, gpu.polls);
      gpu.kicked = true;
    }
    state_.lanes.notify_all();
    state_.told.wait_until(lock, in(state_.deadline_ns + 50'000'000), [&] {
      return state_.stopping || std::all_of(asked.begin(), asked.end(), [](auto &each) {
               return !each.first->askable() || each.first->polls > each.second;
             });
    });
    return std::any_of(asked.begin(), asked.end(), [](auto &each) { return !each.first->watchable(); });
  }

  // Waits longer with each error in a row, and tells of the first one only. False when it is time to stop.
  bool complain(nvml::Return code, const char *call) {
    {
      std::lock_guard lock(state_.mutex);
      ++state_.counts.event_errors;
      state_.events_ready = true;  // as far as it will get for now
      state_.told.notify_all();
    }
    if (errors_++ == 0) {
      Record record = state_.record("nvml_event", "error", nullptr);
      record.code = code;
      record.text =
          std::string(call) + " says " + nvml::told(state_.library, code) + "; events may be missed, the poll goes on";
      state_.push(std::move(record));
    }
    return pause();
  }

  bool pause() {
    Lock lock(state_.mutex);
    state_.told.wait_until(lock, in(std::min(kPauseNs << std::min<uint64_t>(errors_, 10), kLongestPauseNs)),
                           [&] { return state_.stopping; });
    return !state_.stopping;
  }

  void recovered() {
    errors_ = 0;
    Record record = state_.record("nvml_event", "error", nullptr);
    record.code = nvml::kSuccess;
    record.text = "events arrive again";
    state_.push(std::move(record));
  }

  void deliver(const nvml::EventData &data) {
    Record record;
    {
      std::lock_guard lock(state_.mutex);
      WatchedGpu *gpu = nullptr;
      for (WatchedGpu &each : state_.gpus)
        if (each.handle == data.device) gpu = &each;
      const bool xid = data.type == nvml::kXid;
      if (xid && data.data == kNoXid) {  // seen from real drivers; says nothing
        ++state_.counts.spurious_xids;
        return;
      }
      ++state_.counts.events;
      record = state_.record("nvml_event", xid ? "xid" : "event", gpu);
      record.code = static_cast<int64_t>(xid ? data.data : data.type);
      if (gpu && ((xid && std::count(std::begin(kSilencing), std::end(kSilencing), data.data)) ||
                  data.type == nvml::kGpuUnavailable))
        gpu->avoided = true;
      else if (gpu && data.type == nvml::kRecoveryActionChanged)
        gpu->kicked = true;
      if (gpu && (gpu->avoided || gpu->kicked)) state_.lanes.notify_all();
    }
    if (data.type != nvml::kXid && data.data) record.facts.emplace_back("data", std::to_string(data.data));
    if (data.type == nvml::kXid && data.data == kUnknownXid) record.text = "NVML does not know the XID";
    if (data.gi != nvml::kUnattributed) record.gi = static_cast<int>(data.gi);
    if (data.ci != nvml::kUnattributed) record.ci = static_cast<int>(data.ci);
    state_.push(std::move(record));
  }

  NvmlState &state_;
  Seat &seat_;
  nvml::EventSet set_ = nullptr;
  uint64_t errors_ = 0;  // in a row
  int early_ = 0;        // waits in a row that were over at once
};

}  // namespace

void run_events(Shared state, Seat &seat) { Events(*state, seat).run(); }

}  // namespace gft::watch
