// Event sets as NVML has them: a queue and masks per set, nothing from before the registration, a wait that wakes at once.
// What NVML says nowhere, the size of a queue and what falls out of it, can be set and asked for by commands.
#include <algorithm>
#include <chrono>

#include "world.h"

using namespace sim;

namespace {

std::shared_ptr<Set> find(World &world, EventSet handle) {
  auto found = world.sets.find(handle);
  return found == world.sets.end() ? nullptr : found->second;
}

// Until `ready`, the deadline or a script says so; the code to return. A wedge holds calls that have begun, too.
template <typename Ready, typename Lost>
Return wait(Call &call, const char *name, unsigned timeout_ms, Ready ready, Lost lost) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  for (bool last = false;;) {
    call.world.stay_wedged(call.lock, name, -1);
    if (!call.world.users) return kUninitialized;
    if (ready()) return kSuccess;
    if (lost()) return kGpuIsLost;
    if (int code = call.world.scripted(name, -1)) return code;
    if (last) return kTimeout;
    last = call.world.changed.wait_until(call.lock, until) == std::cv_status::timeout;
  }
}

Return wait_for_event(const char *name, EventSet handle, EventData *data, unsigned timeout_ms) {
  Call call(name);
  if (call.code) return call.code;
  auto set = find(call.world, handle);
  if (!set || !data) return kInvalidArgument;
  Return code = wait(
      call, name, timeout_ms, [&] { return set->freed || !set->events.empty(); },
      [&] {
        return std::any_of(set->masks.begin(), set->masks.end(), [&](auto &mask) {
          const Gpu *gpu = gpu_at(call.world, mask.first);
          return gpu && gpu->lost;
        });
      });
  if (code) return code;
  if (set->freed) return kInvalidArgument;
  *data = set->events.front();
  set->events.pop_front();
  return kSuccess;
}

std::shared_ptr<SystemEvents> find(World &world, SystemSet handle) {
  auto found = world.system_sets.find(handle);
  return found == world.system_sets.end() ? nullptr : found->second;
}

}  // namespace

NVML_API Return nvmlEventSetCreate(EventSet *out) {
  Call call(__func__);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  auto set = std::make_shared<Set>();
  *out = reinterpret_cast<EventSet>(set.get());
  call.world.sets[*out] = set;
  return kSuccess;
}

NVML_API Return nvmlEventSetFree(EventSet handle) {
  Call call(__func__);
  if (call.code) return call.code;
  auto set = find(call.world, handle);
  if (!set) return kInvalidArgument;
  set->freed = true;
  call.world.sets.erase(handle);
  call.world.changed.notify_all();
  return kSuccess;
}

NVML_API Return nvmlDeviceGetSupportedEventTypes(Device device, unsigned long long *types) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!types || call.mig) return kInvalidArgument;
  *types = call.gpu->supported;
  return kSuccess;
}

NVML_API Return nvmlDeviceRegisterEvents(Device device, unsigned long long types, EventSet handle) {
  Call call(__func__, device);
  auto set = find(call.world, handle);
  if (call.code) {
    // As documented: after an unknown error the set is undefined and can only be freed.
    if (call.code == kUnknown && set) set->masks.clear();
    return call.code;
  }
  if (!set || call.mig) return kInvalidArgument;
  if (types & ~call.gpu->supported) return kNotSupported;
  set->masks[call.gpu->index] |= types;
  return kSuccess;
}

NVML_API Return nvmlEventSetWait(EventSet set, EventData *data, unsigned timeout_ms) {
  return wait_for_event(__func__, set, data, timeout_ms);
}

NVML_API Return nvmlEventSetWait_v2(EventSet set, EventData *data, unsigned timeout_ms) {
  return wait_for_event(__func__, set, data, timeout_ms);
}

NVML_API Return nvmlSystemEventSetCreate(SystemSetRequest *request) {
  Call call(__func__);
  if (call.code) return call.code;
  if (!request || request->version != version_of<SystemSetRequest>(1)) return kVersionMismatch;
  auto set = std::make_shared<SystemEvents>();
  request->set = reinterpret_cast<SystemSet>(set.get());
  call.world.system_sets[request->set] = set;
  return kSuccess;
}

NVML_API Return nvmlSystemEventSetFree(SystemSetRequest *request) {
  Call call(__func__);
  if (call.code) return call.code;
  auto set = request ? find(call.world, request->set) : nullptr;
  if (!set) return kInvalidArgument;
  set->freed = true;
  call.world.system_sets.erase(request->set);
  call.world.changed.notify_all();
  return kSuccess;
}

NVML_API Return nvmlSystemRegisterEvents(SystemRegisterRequest *request) {
  Call call(__func__);
  if (call.code) return call.code;
  if (!request || request->version != version_of<SystemRegisterRequest>(1)) return kVersionMismatch;
  auto set = find(call.world, request->set);
  if (!set || request->types & ~3ull) return kInvalidArgument;
  set->mask |= request->types;
  return kSuccess;
}

NVML_API Return nvmlSystemEventSetWait(SystemWaitRequest *request) {
  Call call(__func__);
  if (call.code) return call.code;
  if (!request || request->version != version_of<SystemWaitRequest>(1)) return kVersionMismatch;
  auto set = find(call.world, request->set);
  if (!set || !request->data || !request->size) return kInvalidArgument;
  request->count = 0;
  Return code =
      wait(call, __func__, request->timeout_ms, [&] { return set->freed || !set->events.empty(); }, [] { return false; });
  if (code) return code;
  for (; request->count < request->size && !set->events.empty(); ++request->count) {
    request->data[request->count] = set->events.front();
    set->events.pop_front();
  }
  return request->count ? kSuccess : kInvalidArgument;
}
