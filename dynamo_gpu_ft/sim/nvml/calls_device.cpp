// The library's life and the identity of its devices: init, counting, handles, names, MIG instances, processes.
// Names and versions begin or end with SIMULATED, so that nobody takes this machine for a real one.
#include <strings.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "world.h"

using namespace sim;

namespace {

Return put(char *to, unsigned size, const std::string &text) {
  if (!to) return kInvalidArgument;
  if (size <= text.size()) return kInsufficientSize;
  std::memcpy(to, text.c_str(), text.size() + 1);
  return kSuccess;
}

template <typename T, typename From>
Return give(T *to, From value) {
  if (!to) return kInvalidArgument;
  *to = static_cast<T>(value);
  return kSuccess;
}

Return init(const char *name) {
  listen_for_commands();
  World &world = sim::world();
  std::unique_lock lock(world.mutex);
  ++world.calls[{name, -1}];
  world.stay_wedged(lock, name, -1);
  if (int code = world.scripted(name, -1)) return code;
  ++world.users;
  return kSuccess;
}

// Every handle call answers for the GPU that it finds, so that scripts about that GPU count.
template <typename Matches>
Return find(const char *name, Device *out, Matches matches) {
  int index = -1, slice = -1;
  {
    Call call(name);
    if (call.code) return call.code;
    if (!out) return kInvalidArgument;
    for (const Gpu &gpu : call.world.gpus) {
      if (matches(gpu, nullptr)) index = gpu.index;
      for (size_t i = 0; i < gpu.migs.size(); ++i)
        if (matches(gpu, &gpu.migs[i])) index = gpu.index, slice = static_cast<int>(i);
    }
    if (index < 0) return kNotFound;
  }
  Call call(name, handle_of(index, slice));
  if (call.code) return call.code;
  *out = handle_of(index, slice);
  return kSuccess;
}

Return by_index(const char *name, unsigned index, Device *out) {
  Return code =
      find(name, out, [&](const Gpu &gpu, const Mig *mig) { return !mig && gpu.index == static_cast<int>(index); });
  return code == kNotFound ? kInvalidArgument : code;
}

Return by_bus_id(const char *name, const char *id, Device *out) {
  unsigned domain = 0, bus = 0, device = 0;
  if (!id || (std::sscanf(id, "%x:%x:%x", &domain, &bus, &device) != 3 &&
              (domain = 0, std::sscanf(id, "%x:%x", &bus, &device) != 2)))
    return kInvalidArgument;
  return find(name, out, [&](const Gpu &gpu, const Mig *mig) {
    return !mig && gpu.domain == domain && gpu.bus == bus && gpu.device == device;
  });
}

Return pci_info(const char *name, Device device, PciInfo *out) {
  Call call(name, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  *out = {};
  std::snprintf(out->bus_id, sizeof out->bus_id, "%s", call.gpu->bdf().c_str());
  std::snprintf(out->legacy_id, sizeof out->legacy_id, "%s", call.gpu->bdf().c_str() + 4);
  out->domain = call.gpu->domain, out->bus = call.gpu->bus, out->device = call.gpu->device;
  out->pci_id = call.world.blackwell ? 0x290110de : 0x233010de;
  return kSuccess;
}

Return processes(const char *name, Device device, unsigned *count, ProcessInfo *out) {
  Call call(name, device);
  if (call.code) return call.code;
  if (!count) return kInvalidArgument;
  const auto there = static_cast<unsigned>(call.gpu->processes.size()), room = *count;
  *count = there;
  if (there > room || (there && !out)) return kInsufficientSize;
  std::copy(call.gpu->processes.begin(), call.gpu->processes.end(), out);
  return kSuccess;
}

}  // namespace

NVML_API Return nvmlInit() { return init(__func__); }
NVML_API Return nvmlInit_v2() { return init(__func__); }
NVML_API Return nvmlInitWithFlags(unsigned) { return init(__func__); }

NVML_API Return nvmlShutdown() {
  Call call(__func__);
  if (call.code) return call.code;
  if (--call.world.users == 0) {
    for (auto &[handle, set] : call.world.sets) set->freed = true;
    call.world.sets.clear();
    call.world.system_sets.clear();
    call.world.changed.notify_all();
  }
  return kSuccess;
}

NVML_API const char *nvmlErrorString(Return code) {
  switch (code) {
    case 0:
      return "Success";
    case 1:
      return "Uninitialized";
    case 2:
      return "Invalid Argument";
    case 3:
      return "Not Supported";
    case 4:
      return "Insufficient Permissions";
    case 6:
      return "Not Found";
    case 7:
      return "Insufficient Size";
    case 9:
      return "Driver Not Loaded";
    case 10:
      return "Timeout";
    case 15:
      return "GPU is lost";
    case 16:
      return "GPU requires reset";
    case 17:
      return "GPU access blocked by the operating system";
    case 18:
      return "Driver/library version mismatch";
    case 999:
      return "Unknown Error";
    default:
      return "Error (simulated)";
  }
}

NVML_API Return nvmlSystemGetDriverVersion(char *version, unsigned size) {
  Call call(__func__);
  return call.code ? call.code : put(version, size, call.world.driver);
}
NVML_API Return nvmlSystemGetNVMLVersion(char *version, unsigned size) {
  Call call(__func__);
  return call.code ? call.code : put(version, size, "13." + call.world.driver);
}
NVML_API Return nvmlSystemGetCudaDriverVersion(int *version) { return give(version, 13000); }
NVML_API Return nvmlSystemGetCudaDriverVersion_v2(int *version) { return give(version, 13000); }

NVML_API Return nvmlDeviceGetCount(unsigned *count) {
  Call call(__func__);
  return call.code ? call.code : give(count, call.world.gpus.size());
}
NVML_API Return nvmlDeviceGetCount_v2(unsigned *count) {
  Call call(__func__);
  return call.code ? call.code : give(count, call.world.gpus.size());
}
NVML_API Return nvmlDeviceGetHandleByIndex(unsigned index, Device *out) { return by_index(__func__, index, out); }
NVML_API Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *out) { return by_index(__func__, index, out); }
NVML_API Return nvmlDeviceGetHandleByPciBusId(const char *id, Device *out) { return by_bus_id(__func__, id, out); }
NVML_API Return nvmlDeviceGetHandleByPciBusId_v2(const char *id, Device *out) { return by_bus_id(__func__, id, out); }
NVML_API Return nvmlDeviceGetHandleByUUID(const char *uuid, Device *out) {
  if (!uuid) return kInvalidArgument;
  return find(__func__, out,
              [&](const Gpu &gpu, const Mig *mig) { return (mig ? mig->uuid : gpu.uuid) == std::string(uuid); });
}

NVML_API Return nvmlDeviceGetIndex(Device device, unsigned *index) {
  Call call(__func__, device);
  return call.code ? call.code : give(index, call.mig ? call.mig - call.gpu->migs.data() : call.gpu->index);
}
NVML_API Return nvmlDeviceGetMinorNumber(Device device, unsigned *minor) {
  Call call(__func__, device);
  return call.code ? call.code : give(minor, call.gpu->index);
}
NVML_API Return nvmlDeviceGetUUID(Device device, char *uuid, unsigned size) {
  Call call(__func__, device);
  return call.code ? call.code : put(uuid, size, call.mig ? call.mig->uuid : call.gpu->uuid);
}
NVML_API Return nvmlDeviceGetName(Device device, char *name, unsigned size) {
  Call call(__func__, device);
  return call.code ? call.code : put(name, size, call.gpu->name);
}
NVML_API Return nvmlDeviceGetSerial(Device device, char *serial, unsigned size) {
  Call call(__func__, device);
  return call.code ? call.code : put(serial, size, "SIMULATED-" + std::to_string(call.gpu->index));
}
NVML_API Return nvmlDeviceGetArchitecture(Device device, unsigned *architecture) {
  Call call(__func__, device);
  return call.code ? call.code : give(architecture, call.world.blackwell ? 10 : 9);
}
NVML_API Return nvmlDeviceGetCudaComputeCapability(Device device, int *major, int *minor) {
  Call call(__func__, device);
  if (call.code) return call.code;
  give(minor, 0);
  return give(major, call.world.blackwell ? 10 : 9);
}
NVML_API Return nvmlDeviceGetPciInfo(Device device, PciInfo *out) { return pci_info(__func__, device, out); }
NVML_API Return nvmlDeviceGetPciInfo_v3(Device device, PciInfo *out) { return pci_info(__func__, device, out); }

NVML_API Return nvmlDeviceGetComputeRunningProcesses_v2(Device device, unsigned *count, ProcessInfo *out) {
  return processes(__func__, device, count, out);
}
NVML_API Return nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, ProcessInfo *out) {
  return processes(__func__, device, count, out);
}
NVML_API Return nvmlDeviceGetMPSComputeRunningProcesses_v3(Device device, unsigned *count, ProcessInfo *) {
  Call call(__func__, device);
  return call.code ? call.code : give(count, 0);
}
NVML_API Return nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned *count, ProcessInfo *) {
  Call call(__func__, device);
  return call.code ? call.code : give(count, 0);
}

NVML_API Return nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) {
  Call call(__func__, device);
  if (call.code) return call.code;
  give(pending, !call.gpu->migs.empty());
  return give(current, !call.gpu->migs.empty());
}
NVML_API Return nvmlDeviceIsMigDeviceHandle(Device device, unsigned *is) {
  Call call(__func__, device);
  return call.code ? call.code : give(is, call.mig != nullptr);
}
NVML_API Return nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
  Call call(__func__, device);
  return call.code ? call.code : give(count, kMaxMig);
}
NVML_API Return nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  return index < call.gpu->migs.size() ? give(out, handle_of(call.gpu->index, static_cast<int>(index))) : kNotFound;
}
NVML_API Return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device mig, Device *out) {
  Call call(__func__, mig);
  if (call.code) return call.code;
  return call.mig ? give(out, handle_of(call.gpu->index)) : kInvalidArgument;
}
NVML_API Return nvmlDeviceGetGpuInstanceId(Device device, unsigned *id) {
  Call call(__func__, device);
  if (call.code) return call.code;
  return call.mig ? give(id, call.mig->gi) : kNotSupported;
}
NVML_API Return nvmlDeviceGetComputeInstanceId(Device device, unsigned *id) {
  Call call(__func__, device);
  if (call.code) return call.code;
  return call.mig ? give(id, call.mig->ci) : kNotSupported;
}
