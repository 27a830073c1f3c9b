// The shapes of NVML that the simulated library speaks, as NVIDIA's API reference and nvidia-ml-py 13.615 give them.
// Independent of the watcher's own definitions, so that each checks the other.
#pragma once

#include <cstddef>
#include <cstdint>

#define NVML_API extern "C" __attribute__((visibility("default")))

using Return = int;
using Device = struct DeviceTag *;
using EventSet = struct EventSetTag *;
using SystemSet = struct SystemSetTag *;

constexpr Return kSuccess = 0, kUninitialized = 1, kInvalidArgument = 2, kNotSupported = 3, kNotFound = 6,
                 kInsufficientSize = 7, kTimeout = 10, kGpuIsLost = 15, kVersionMismatch = 25, kUnknown = 999;
constexpr unsigned kUnattributed = 0xFFFFFFFF;
constexpr uint64_t kXidBit = 0x8, kEveryEvent = 0xFF9F;
constexpr int kMaxGpus = 64, kMaxMig = 7, kMaxLinks = 36;

// A versioned structure says its size in the lower bits and its version in the upper byte.
template <typename T>
constexpr unsigned version_of(unsigned number) {
  return static_cast<unsigned>(sizeof(T)) | number << 24;
}

struct PciInfo {
  char legacy_id[16];
  unsigned domain, bus, device, pci_id, subsystem_id;
  char bus_id[32];
};
struct EventData {
  Device device;
  unsigned long long type, data;
  unsigned gi, ci;
};
union Value {
  double as_double;
  unsigned ui;
  unsigned long ul;
  unsigned long long ull;
  long long sll;
};
struct FieldValue {
  unsigned field, scope;
  long long timestamp, latency;
  unsigned type;
  Return status;
  Value value;
};
struct Memory {
  unsigned long long total, free, used;
};
struct MemoryV2 {
  unsigned version;
  unsigned long long total, reserved, free, used;
};
struct Utilization {
  unsigned gpu, memory;
};
struct ProcessInfo {
  unsigned pid;
  unsigned long long memory;
  unsigned gi, ci;
};
struct SramErrors {
  unsigned version;
  unsigned long long aggregate_parity, aggregate_secded, aggregate_corrected, volatile_parity, volatile_secded,
      volatile_corrected, bucket_l2, bucket_sm, bucket_pcie, bucket_mcu, bucket_other;
  unsigned threshold_exceeded;
};
struct RemappedRows {
  unsigned corrected, corrected_inactive, uncorrected, uncorrected_inactive, pending, failure;
};
struct RowHistogram {
  unsigned max, high, partial, low, none;
};
struct RepairStatus {
  unsigned version, channel_pending, tpc_pending;
};
struct FabricInfo {
  unsigned char cluster[16];
  Return status;
  unsigned clique, state;
};
struct FabricInfoV2 {
  unsigned version;
  unsigned char cluster[16];
  Return status;
  unsigned clique, state, health_mask;
};
struct FabricInfoV3 {
  unsigned version;
  unsigned char cluster[16];
  Return status;
  unsigned clique, state, health_mask;
  unsigned char health_summary;
};
struct SystemSetRequest {
  unsigned version;
  SystemSet set;
};
struct SystemRegisterRequest {
  unsigned version;
  unsigned long long types;
  SystemSet set;
};
struct SystemEvent {
  unsigned long long type;
  unsigned gpu_id;
};
struct SystemWaitRequest {
  unsigned version, timeout_ms;
  SystemSet set;
  SystemEvent *data;
  unsigned size, count;
};

static_assert(sizeof(EventData) == 32 && sizeof(FieldValue) == 40 && sizeof(PciInfo) == 68);
static_assert(version_of<SramErrors>(1) == 0x1000068 && version_of<FabricInfoV2>(2) == 0x2000024);
static_assert(version_of<FabricInfoV3>(3) == 0x3000028 && version_of<RepairStatus>(1) == 0x100000C);
static_assert(version_of<SystemSetRequest>(1) == 0x1000010 && version_of<SystemRegisterRequest>(1) == 0x1000018);
static_assert(version_of<SystemWaitRequest>(1) == 0x1000020 && version_of<MemoryV2>(2) == 0x2000028);
