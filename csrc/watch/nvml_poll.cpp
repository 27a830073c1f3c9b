// One GPU's thread: finds it, then polls its recovery action and whether it still answers, and tells what changed.
// The poll sees what comes without an event: a recovery action, a lost GPU, one that needs a reset, and their end.
#include <chrono>

#include "nvml_state.h"

namespace gft::watch {
namespace {

using Lock = std::unique_lock<std::mutex>;

bool is_index(const std::string &text) {
  return !text.empty() && text.size() < 6 && text.find_first_not_of("0123456789") == std::string::npos;
}

// The handle of what was asked for; of a MIG instance, the GPU that it is part of: events are the GPU's.
std::optional<nvml::Return> handle(NvmlState &state, Seat &seat, WatchedGpu &gpu, nvml::Device *out) {
  const nvml::Library &library = state.library;
  const std::string &wanted = gpu.wanted;
  if (is_index(wanted))
    return state.ask(seat, "nvmlDeviceGetHandleByIndex_v2", &gpu,
                     [&] { return library.by_index(static_cast<unsigned>(std::stoul(wanted)), out); });
  if (wanted.find(':') != std::string::npos)
    return state.ask(seat, "nvmlDeviceGetHandleByPciBusId_v2", &gpu, [&] { return library.by_bus_id(wanted.c_str(), out); });
  auto code = state.ask(seat, "nvmlDeviceGetHandleByUUID", &gpu, [&] { return library.by_uuid(wanted.c_str(), out); });
  if (!code || *code || wanted.rfind("MIG-", 0) != 0 || !library.whole_gpu) return code;
  return state.ask(seat, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", &gpu, [&] {
    nvml::Device slice = *out;
    return library.whole_gpu(slice, out);
  });
}

// Everything that is known of the GPU. What its names are is worth having, but no reason to give it up.
std::optional<nvml::Return> identify(NvmlState &state, Seat &seat, WatchedGpu &gpu) {
  const nvml::Library &library = state.library;
  if (is_index(gpu.wanted)) {
    std::lock_guard lock(state.mutex);
    gpu.index = static_cast<int>(std::stoul(gpu.wanted));  // what a record can say should the first call already stick
  }
  nvml::Device device = nullptr;
  auto code = handle(state, seat, gpu, &device);
  if (!code || *code) return code;
  unsigned index = 0;
  char uuid[96] = "", name[96] = "";
  nvml::PciInfo pci{};
  unsigned long long supported = 0;
  const auto indexed = state.ask(seat, "nvmlDeviceGetIndex", &gpu, [&] { return library.index(device, &index); });
  const auto named = state.ask(seat, "nvmlDeviceGetUUID", &gpu, [&] { return library.uuid(device, uuid, sizeof uuid); });
  const auto titled = state.ask(seat, "nvmlDeviceGetName", &gpu, [&] { return library.name(device, name, sizeof name); });
  const auto placed = state.ask(seat, "nvmlDeviceGetPciInfo_v3", &gpu, [&] { return library.pci_info(device, &pci); });
  const auto asked = state.ask(seat, "nvmlDeviceGetSupportedEventTypes", &gpu,
                               [&] { return library.supported_events(device, &supported); });
  if (!asked) return std::nullopt;
  uuid[sizeof uuid - 1] = name[sizeof name - 1] = 0;
  std::lock_guard lock(state.mutex);
  gpu.handle = device;
  if (indexed == nvml::kSuccess) gpu.index = static_cast<int>(index);
  if (named == nvml::kSuccess) gpu.uuid = uuid;
  if (titled == nvml::kSuccess) gpu.name = name;
  if (placed == nvml::kSuccess) gpu.bdf = bdf_text(pci.domain, pci.bus, pci.device);
  if (asked == nvml::kSuccess) gpu.supported = supported;
  return nvml::kSuccess;
}

bool lost(nvml::Return code) { return code == nvml::kGpuIsLost || code == nvml::kResetRequired; }

// What a poll says beside the one before: records of what changed. With the lock.
std::vector<Record> compare(NvmlState &state, WatchedGpu &gpu, nvml::Return code, int action) {
  std::vector<Record> out;
  auto tell = [&](const char *what, int64_t number, std::string text) {
    Record record = state.record("nvml_poll", what, &gpu);
    record.code = number;
    record.text = std::move(text);
    if (gpu.polls == 0) record.facts.emplace_back("baseline", "1");
    out.push_back(std::move(record));
  };
  if (code != gpu.code) {
    const bool about_loss = lost(code) || (code == nvml::kSuccess && lost(gpu.code));
    tell(about_loss ? "gpu_lost" : "error", code, nvml::told(state.library, code));
    if (code == nvml::kSuccess) gpu.refuses_events = false;
    gpu.code = code;
  }
  if (code == nvml::kSuccess && action >= 0 && action != gpu.action) {
    if (gpu.action >= 0 || action > 0) {
      tell("recovery_action", action, "");
      if (gpu.action >= 0) out.back().facts.emplace_back("previous", std::to_string(gpu.action));
    }
    gpu.action = action;
  }
  ++gpu.polls;
  ++state.counts.polls;
  return out;
}

// One look at the GPU; false when the thread has to end. Without field 230 the temperature shows whether it still answers.
bool poll(NvmlState &state, Seat &seat, WatchedGpu &gpu, bool &has_field) {
  nvml::FieldValue field{};
  field.field = nvml::kRecoveryAction;
  int action = -1;
  std::optional<nvml::Return> code;
  if (has_field) {
    code =
        state.ask(seat, "nvmlDeviceGetFieldValues", &gpu, [&] { return state.library.field_values(gpu.handle, 1, &field); });
    if (!code) return false;
    if (*code == nvml::kSuccess && field.status == nvml::kSuccess) action = static_cast<int>(field.value.ui);
    if (*code == nvml::kSuccess && lost(field.status)) code = field.status;
    has_field = *code != nvml::kSuccess ? *code != nvml::kNotSupported : field.status == nvml::kSuccess;
  }
  if (!has_field) {
    unsigned degrees = 0;
    code = state.ask(seat, "nvmlDeviceGetTemperature", &gpu,
                     [&] { return state.library.temperature(gpu.handle, 0, &degrees); });
    if (!code) return false;
    if (*code == nvml::kNotSupported) code = nvml::kSuccess;
  }
  std::vector<Record> records;
  {
    std::lock_guard lock(state.mutex);
    records = compare(state, gpu, *code, action);
    state.told.notify_all();
  }
  for (Record &record : records) state.push(std::move(record));
  return true;
}

// Ticks are common to all GPUs, so that one wake-up of the processor serves them all.
int64_t next_tick(const NvmlState &state) {
  const int64_t passed = (now_ns() - state.began_ns) / state.poll_ns;
  return state.began_ns + (passed + 1) * state.poll_ns;
}

}  // namespace

void run_gpu(Shared shared, Seat &seat) {
  NvmlState &state = *shared;
  WatchedGpu &gpu = *seat.own;
  const auto found = identify(state, seat, gpu);
  if (!found) return;  // stuck, and already told
  bool has_field = true;
  if (*found == nvml::kSuccess && !poll(state, seat, gpu, has_field)) return;
  Lock lock(state.mutex);
  gpu.refusal = *found;
  gpu.phase = *found == nvml::kSuccess ? WatchedGpu::Phase::ready : WatchedGpu::Phase::absent;
  state.told.notify_all();
  if (gpu.phase == WatchedGpu::Phase::absent) {
    if (gpu.refusal == nvml::kInvalidArgument || gpu.refusal == nvml::kNotFound) return;  // the caller hears of it
    auto records = compare(state, gpu, gpu.refusal, -1);
    lock.unlock();
    for (Record &record : records) state.push(std::move(record));
    return;
  }
  while (!state.stopping && gpu.askable()) {
    const auto due = [&] { return state.stopping || gpu.kicked || !gpu.askable(); };
    if (state.poll_ns)
      state.lanes.wait_until(lock, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(next_tick(state))), due);
    else
      state.lanes.wait(lock, due);
    if (state.stopping || !gpu.askable()) break;
    gpu.kicked = false;
    lock.unlock();
    if (!poll(state, seat, gpu, has_field)) return;
    lock.lock();
  }
}

}  // namespace gft::watch
