// Drivers being unbound from a GPU and bound again, as newer NVMLs tell them: what a reset by somebody else looks like.
// Optional in every respect: a library without these calls, or one that refuses them, leaves only the rest.
#include "nvml_state.h"

namespace gft::watch {
namespace {

constexpr unsigned kWaitMs = 500;
constexpr unsigned long long kUnbind = 1, kBind = 2;

// NOTE: "in PCI format" is all that the reference says. The open kernel modules make such ids of domain, bus and device in
// this way; not seen on hardware yet, so an id that names none of our GPUs is told as it is.
std::string bdf_of(unsigned id) { return bdf_text(id >> 16, id >> 8 & 0xff, id & 0xff); }

void tell(NvmlState &state, const nvml::SystemEvent &event) {
  Record record;
  {
    std::lock_guard lock(state.mutex);
    const WatchedGpu *gpu = nullptr;
    for (const WatchedGpu &each : state.gpus)
      if (each.bdf == bdf_of(event.gpu_id)) gpu = &each;
    record = state.record("nvml_event", event.type == kUnbind ? "driver_unbind" : "driver_bind", gpu);
  }
  if (record.bdf.empty()) record.bdf = bdf_of(event.gpu_id);
  record.code = static_cast<int64_t>(event.type);
  record.facts.emplace_back("gpu_id", std::to_string(event.gpu_id));
  state.push(std::move(record));
}

bool stopping(NvmlState &state) {
  std::lock_guard lock(state.mutex);
  return state.stopping;
}

}  // namespace

void run_system_events(Shared shared, Seat &seat) {
  NvmlState &state = *shared;
  const nvml::Library &library = state.library;
  nvml::SystemSetRequest made{nvml::first_version<nvml::SystemSetRequest>(), nullptr};
  if (state.ask(seat, "nvmlSystemEventSetCreate", nullptr, [&] { return library.system_create(&made); }) != nvml::kSuccess)
    return;
  nvml::SystemRegisterRequest wish{nvml::first_version<nvml::SystemRegisterRequest>(), kUnbind | kBind, made.set};
  auto code = state.ask(seat, "nvmlSystemRegisterEvents", nullptr, [&] { return library.system_register(&wish); });
  nvml::SystemEvent events[16];
  while (code && (*code == nvml::kSuccess || *code == nvml::kTimeout) && !stopping(state)) {
    nvml::SystemWaitRequest wait{nvml::first_version<nvml::SystemWaitRequest>(), kWaitMs, made.set, events, 16, 0};
    code = state.ask(
        seat, "nvmlSystemEventSetWait", nullptr, [&] { return library.system_wait(&wait); }, kWaitMs * 1'000'000LL);
    if (code == nvml::kSuccess)
      for (unsigned i = 0; i < wait.count && i < 16; ++i) tell(state, events[i]);
  }
  if (code) state.ask(seat, "nvmlSystemEventSetFree", nullptr, [&] { return library.system_free(&made); });
}

}  // namespace gft::watch
