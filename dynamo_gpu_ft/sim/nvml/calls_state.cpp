// Counters and states of a device, all out of its table of values: fields, rows, ECC, NVLink, fabric, PCIe, clocks, memory.
// A name that nobody set reads as the healthy value; a field that is not in the table is not supported.
#include <algorithm>
#include <cstring>
#include <ctime>

#include "world.h"

using namespace sim;

namespace {

// What the counter is in NVML: the small ones are 32 bits wide there.
unsigned type_of(unsigned field) {
  static const unsigned narrow[] = {91, 94, 95, 142, 143, 144, 145, 164, 165, 226, 227, 230};
  return std::find(std::begin(narrow), std::end(narrow), field) != std::end(narrow) ? 1 : 3;
}

// One named value of a device, as most calls want it.
template <typename T>
Return read(const char *call_name, Device device, T *out, const char *name, uint64_t otherwise = 0) {
  Call call(call_name, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  *out = static_cast<T>(call.world.named(*call.gpu, name, otherwise));
  return kSuccess;
}

// The same for what only exists once somebody set it, or on devices that have links.
template <typename T>
Return read_link(const char *call_name, Device device, unsigned link, T *out, unsigned field) {
  Call call(call_name, device);
  if (call.code) return call.code;
  uint64_t value = 0;
  if (!out || link >= kMaxLinks) return kInvalidArgument;
  if (static_cast<int>(link) >= call.world.links || !call.world.field(*call.gpu, field, link, &value)) return kNotSupported;
  *out = static_cast<T>(value);
  return kSuccess;
}

template <typename T>
void fill_fabric(const Call &call, T *out) {
  auto named = [&](const char *name) { return call.world.named(*call.gpu, name); };
  std::memset(out->cluster, call.world.links ? 0x51 : 0, sizeof out->cluster);
  out->status = static_cast<Return>(named("fabric.status"));
  out->clique = static_cast<unsigned>(named("fabric.clique"));
  out->state = static_cast<unsigned>(named("fabric.state"));
}

}  // namespace

NVML_API Return nvmlDeviceGetFieldValues(Device device, int count, FieldValue *values) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!values || count < 1) return kInvalidArgument;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  for (int i = 0; i < count; ++i) {
    FieldValue &each = values[i];
    uint64_t value = 0;
    const bool there = call.world.field(*call.gpu, each.field, each.scope, &value);
    each.timestamp = now.tv_sec * 1'000'000LL + now.tv_nsec / 1000;
    each.latency = 0;
    each.type = type_of(each.field);
    each.value.ull = value;
    each.status =
        there ? call.world.scripted(("field:" + std::to_string(each.field)).c_str(), call.gpu->index) : kNotSupported;
  }
  return kSuccess;
}

NVML_API Return nvmlDeviceGetRemappedRows(Device device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                                          unsigned *failure) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!corrected || !uncorrected || !pending || !failure) return kInvalidArgument;
  *corrected = static_cast<unsigned>(call.world.named(*call.gpu, "142"));
  *uncorrected = static_cast<unsigned>(call.world.named(*call.gpu, "143"));
  *pending = static_cast<unsigned>(call.world.named(*call.gpu, "144"));
  *failure = static_cast<unsigned>(call.world.named(*call.gpu, "145"));
  return kSuccess;
}

NVML_API Return nvmlDeviceGetRemappedRows_v2(Device device, RemappedRows *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  auto value = [&](const char *name) { return static_cast<unsigned>(call.world.named(*call.gpu, name)); };
  *out = {value("142"), value("301"), value("143"), value("302"), value("144"), value("145")};
  return kSuccess;
}

NVML_API Return nvmlDeviceGetRowRemapperHistogram(Device device, RowHistogram *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  auto value = [&](const char *name, unsigned otherwise) {
    return static_cast<unsigned>(call.world.named(*call.gpu, name, otherwise));
  };
  *out = {value("rows.max", 640), value("rows.high", 0), value("rows.partial", 0), value("rows.low", 0),
          value("rows.none", 0)};
  return kSuccess;
}

NVML_API Return nvmlDeviceGetRepairStatus(Device device, RepairStatus *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out || out->version != version_of<RepairStatus>(1)) return kVersionMismatch;
  out->channel_pending = static_cast<unsigned>(call.world.named(*call.gpu, "repair.channel"));
  out->tpc_pending = static_cast<unsigned>(call.world.named(*call.gpu, "repair.tpc"));
  return kSuccess;
}

NVML_API Return nvmlDeviceGetSramEccErrorStatus(Device device, SramErrors *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out || out->version != version_of<SramErrors>(1)) return kVersionMismatch;
  auto value = [&](const char *name) { return call.world.named(*call.gpu, name); };
  *out = {out->version,
          value("sram.agg_parity"),
          value("sram.agg_secded"),
          value("sram.agg_cor"),
          value("sram.parity"),
          value("sram.secded"),
          value("sram.cor"),
          value("sram.l2"),
          value("sram.sm"),
          value("sram.pcie"),
          value("sram.mcu"),
          value("sram.other"),
          static_cast<unsigned>(value("sram.threshold"))};
  return kSuccess;
}

NVML_API Return nvmlDeviceGetEccMode(Device device, unsigned *current, unsigned *pending) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!current || !pending) return kInvalidArgument;
  *current = *pending = static_cast<unsigned>(call.world.named(*call.gpu, "ecc.mode", 1));
  return kSuccess;
}

NVML_API Return nvmlDeviceGetTotalEccErrors(Device device, unsigned uncorrected, unsigned aggregate,
                                            unsigned long long *out) {
  // Kind and span in the order of the fields 3..6: volatile single, volatile double, aggregate single, aggregate double.
  if (uncorrected > 1 || aggregate > 1) return kInvalidArgument;
  return read(__func__, device, out, std::to_string(3 + uncorrected + 2 * aggregate).c_str());
}
NVML_API Return nvmlDeviceGetMemoryErrorCounter(Device device, unsigned uncorrected, unsigned aggregate, unsigned,
                                                unsigned long long *out) {
  if (uncorrected > 1 || aggregate > 1) return kInvalidArgument;
  return read(__func__, device, out, std::to_string(3 + uncorrected + 2 * aggregate).c_str());
}

NVML_API Return nvmlDeviceGetNvLinkState(Device device, unsigned link, unsigned *state) {
  return read_link(__func__, device, link, state, 165);
}
NVML_API Return nvmlDeviceGetNvLinkVersion(Device device, unsigned link, unsigned *version) {
  return read_link(__func__, device, link, version, 165);
}
NVML_API Return nvmlDeviceGetNvLinkRemoteDeviceType(Device device, unsigned link, unsigned *type) {
  Return code = read_link(__func__, device, link, type, 165);
  if (code == kSuccess) *type = 2;  // a switch
  return code;
}
NVML_API Return nvmlDeviceGetNvLinkErrorCounter(Device device, unsigned link, unsigned counter, unsigned long long *out) {
  static const unsigned fields[] = {161, 162, 163};
  return counter < 3 ? read_link(__func__, device, link, out, fields[counter]) : kNotSupported;
}

NVML_API Return nvmlDeviceGetGpuFabricInfo(Device device, FabricInfo *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  fill_fabric(call, out);
  return kSuccess;
}

NVML_API Return nvmlDeviceGetGpuFabricInfoV(Device device, FabricInfoV3 *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  const bool third = out->version == version_of<FabricInfoV3>(3);
  if (!third && out->version != version_of<FabricInfoV2>(2)) return kVersionMismatch;
  fill_fabric(call, out);  // the older shape is the newer one's beginning
  out->health_mask = static_cast<unsigned>(call.world.named(*call.gpu, "fabric.health_mask"));
  if (third) out->health_summary = static_cast<unsigned char>(call.world.named(*call.gpu, "fabric.health_summary"));
  return kSuccess;
}

NVML_API Return nvmlDeviceGetPcieReplayCounter(Device device, unsigned *out) { return read(__func__, device, out, "94"); }
NVML_API Return nvmlDeviceGetCurrPcieLinkGeneration(Device device, unsigned *out) {
  return read(__func__, device, out, "pcie.generation", 5);
}
NVML_API Return nvmlDeviceGetMaxPcieLinkGeneration(Device device, unsigned *out) {
  return read(__func__, device, out, "pcie.max_generation", 5);
}
NVML_API Return nvmlDeviceGetCurrPcieLinkWidth(Device device, unsigned *out) {
  return read(__func__, device, out, "pcie.width", 16);
}
NVML_API Return nvmlDeviceGetMaxPcieLinkWidth(Device device, unsigned *out) {
  return read(__func__, device, out, "pcie.max_width", 16);
}

NVML_API Return nvmlDeviceGetCurrentClocksEventReasons(Device device, unsigned long long *out) {
  return read(__func__, device, out, "clocks.reasons");
}
NVML_API Return nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *out) {
  return read(__func__, device, out, "clocks.reasons");
}
NVML_API Return nvmlDeviceGetSupportedClocksEventReasons(Device device, unsigned long long *out) {
  return read(__func__, device, out, "clocks.supported", 0x1FF);
}
NVML_API Return nvmlDeviceGetSupportedClocksThrottleReasons(Device device, unsigned long long *out) {
  return read(__func__, device, out, "clocks.supported", 0x1FF);
}
NVML_API Return nvmlDeviceGetClockInfo(Device device, unsigned, unsigned *out) {
  return read(__func__, device, out, "clocks.mhz", 1755);
}
NVML_API Return nvmlDeviceGetTemperature(Device device, unsigned, unsigned *out) {
  return read(__func__, device, out, "temperature", 38);
}
NVML_API Return nvmlDeviceGetPowerUsage(Device device, unsigned *out) {
  return read(__func__, device, out, "power.mw", 72000);
}
NVML_API Return nvmlDeviceGetPerformanceState(Device device, unsigned *out) { return read(__func__, device, out, "pstate"); }
NVML_API Return nvmlDeviceGetPersistenceMode(Device device, unsigned *out) {
  return read(__func__, device, out, "persistence", 1);
}
NVML_API Return nvmlDeviceGetRetiredPagesPendingStatus(Device device, unsigned *out) {
  return read(__func__, device, out, "pages.pending");
}

NVML_API Return nvmlDeviceGetUtilizationRates(Device device, Utilization *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  *out = {static_cast<unsigned>(call.world.named(*call.gpu, "util.gpu")),
          static_cast<unsigned>(call.world.named(*call.gpu, "util.memory"))};
  return kSuccess;
}

NVML_API Return nvmlDeviceGetMemoryInfo(Device device, Memory *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out) return kInvalidArgument;
  const uint64_t total = call.world.named(*call.gpu, "memory.total", 80ull << 30),
                 used = call.world.named(*call.gpu, "memory.used");
  *out = {total, total - std::min(total, used), used};
  return kSuccess;
}

NVML_API Return nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *out) {
  Call call(__func__, device);
  if (call.code) return call.code;
  if (!out || out->version != version_of<MemoryV2>(2)) return kVersionMismatch;
  const uint64_t total = call.world.named(*call.gpu, "memory.total", 80ull << 30),
                 used = call.world.named(*call.gpu, "memory.used");
  *out = {out->version, total, 0, total - std::min(total, used), used};
  return kSuccess;
}
