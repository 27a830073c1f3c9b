// What the threads of one NVML watcher share: the GPUs, and for each thread the call it is in and since when.
// Kept alive by every thread that uses it, so that a thread stuck in the driver for ever does no harm.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "nvml.h"
#include "queue.h"

namespace gft::watch {

struct WatchedGpu {
  enum class Phase { starting, ready, absent };

  std::string wanted;  // as it was asked for: an index, a UUID or a PCI address
  Phase phase = Phase::starting;
  nvml::Return refusal = nvml::kSuccess;  // why it is absent
  int index = -1;
  std::string uuid, bdf, name;
  nvml::Device handle = nullptr;
  uint64_t supported = 0, registered = 0;  // event bits
  bool responsive = true;                  // false for good once a call about it did not return
  bool avoided = false;                    // asked nothing more on request or after certain XIDs
  bool refuses_events = false;             // its registration failed
  nvml::Return code = nvml::kSuccess;      // of the last poll
  int action = -1;                         // recovery action, -1: not known
  uint64_t polls = 0;
  bool kicked = false;  // to be polled at once

  bool lost() const { return code == nvml::kGpuIsLost || code == nvml::kResetRequired; }
  bool askable() const { return responsive && !avoided; }
  bool watchable() const { return phase == Phase::ready && askable() && !lost() && !refuses_events; }
};

// One thread that talks to NVML.
struct Seat {
  enum class Role { init, gpu, events, system };
  Role role;
  const char *source;           // of the records it gives rise to
  WatchedGpu *own = nullptr;    // of a gpu seat
  const char *call = nullptr;   // the call it is in
  WatchedGpu *about = nullptr;  // ... and about which GPU
  int64_t since = 0, allowed = 0;
  const char *stuck_in = "";  // the call it was given up in
  bool given_up = false, done = false;
};

struct Counts {
  uint64_t events = 0, spurious_xids = 0, event_errors = 0, sets = 0, polls = 0, stuck_calls = 0, event_threads = 0;
};

struct NvmlState {
  NvmlState(const nvml::Library &table, std::shared_ptr<Queue> to) : library(table), queue(std::move(to)) {}

  const nvml::Library &library;
  const std::shared_ptr<Queue> queue;
  int64_t poll_ns = 0, deadline_ns = 0;
  int64_t began_ns = 0;

  std::mutex mutex;
  std::condition_variable lanes;       // a GPU's thread has something to do
  std::condition_variable supervisor;  // ... or the supervisor
  std::condition_variable told;        // something happened that somebody waits for
  bool started = false, stopping = false, ended = false, initialised = false;
  bool inited = false, events_ready = false;
  nvml::Return init_code = nvml::kSuccess;
  unsigned count = 0;
  int waits_stuck = 0;
  std::string driver;
  std::list<WatchedGpu> gpus;  // addresses stay
  std::list<Seat> seats;
  Counts counts;

  // A record about a GPU, or about none. Without the lock: it runs the listener of the queue.
  Record record(const char *source, const char *what, const WatchedGpu *gpu) const;
  void push(Record record) noexcept;

  // Makes one call from `seat`, watched by the supervisor. Nothing: the call was not made (its GPU must not be asked), or it
  // came back after it had been given up; then the thread has to end.
  template <typename Call>
  std::optional<nvml::Return> ask(Seat &seat, const char *name, WatchedGpu *about, Call &&call, int64_t extra_ns = 0) {
    {
      std::lock_guard lock(mutex);
      if (seat.given_up || (about && !about->askable())) return std::nullopt;
      seat.call = name;
      seat.about = about;
      seat.since = now_ns();
      seat.allowed = deadline_ns + extra_ns;
    }
    const nvml::Return code = call();
    std::lock_guard lock(mutex);
    seat.call = nullptr;
    if (seat.given_up) return std::nullopt;
    return code;
  }
};

using Shared = std::shared_ptr<NvmlState>;

// Each is the whole life of a thread (or begins one); all but the first return at once.
void run_gpu(Shared state, Seat &seat);
void run_events(Shared state, Seat &seat);
void run_system_events(Shared state, Seat &seat);
// Starts a detached thread in a new seat. Throws GFT_INTERNAL when there can be no more threads.
void seat_thread(const Shared &state, Seat::Role role, WatchedGpu *own = nullptr);

// "0000:9b:00" out of domain, bus and device.
std::string bdf_text(unsigned domain, unsigned bus, unsigned device);

}  // namespace gft::watch
