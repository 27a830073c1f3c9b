// The NVML calls that the watcher makes, as a table of plain C function pointers with our own types: no NVIDIA header.
// Filled by dlopen (nvml_load.cpp); nothing else of the core talks to NVML. No call here makes a CUDA context.
//
// Shapes and numbers are those of NVIDIA's NVML API reference; the figure behind an entry is the driver branch that has it.
#pragma once

#include <cstdint>
#include <string>

namespace gft::watch::nvml {

using Return = int;
using Device = struct DeviceTag *;
using EventSet = struct EventSetTag *;
using SystemSet = struct SystemSetTag *;

constexpr Return kSuccess = 0, kInvalidArgument = 2, kNotSupported = 3, kNotFound = 6, kTimeout = 10, kGpuIsLost = 15,
                 kResetRequired = 16;
constexpr unsigned kUnattributed = 0xFFFFFFFF;
constexpr unsigned kRecoveryAction = 230;  // field id, R565
constexpr uint64_t kXid = 0x8, kGpuUnavailable = 0x4000, kRecoveryActionChanged = 0x8000;
// All that tell of a fault: ECC, XID, MIG reconfiguration, ECC storms, page retirement, poison, lost GPUs, recovery actions.
constexpr uint64_t kWanted =
    0x1 | 0x2 | kXid | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000 | kGpuUnavailable | kRecoveryActionChanged;

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
struct FieldValue {
  unsigned field, scope;
  long long timestamp, latency;
  unsigned type;
  Return status;
  union {
    unsigned ui;
    unsigned long long ull;
  } value;
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
// The first version of a versioned structure.
template <typename T>
constexpr unsigned first_version() {
  return static_cast<unsigned>(sizeof(T)) | 1u << 24;
}

struct Library {
  std::string path;  // where the loader found it

  Return (*init)() = nullptr;
  Return (*shutdown)() = nullptr;
  const char *(*error_string)(Return) = nullptr;
  Return (*driver_version)(char *, unsigned) = nullptr;
  Return (*count)(unsigned *) = nullptr;
  Return (*by_index)(unsigned, Device *) = nullptr;
  Return (*by_uuid)(const char *, Device *) = nullptr;
  Return (*by_bus_id)(const char *, Device *) = nullptr;
  Return (*index)(Device, unsigned *) = nullptr;
  Return (*uuid)(Device, char *, unsigned) = nullptr;
  Return (*name)(Device, char *, unsigned) = nullptr;
  Return (*pci_info)(Device, PciInfo *) = nullptr;
  Return (*field_values)(Device, int, FieldValue *) = nullptr;
  Return (*temperature)(Device, unsigned sensor, unsigned *) = nullptr;
  Return (*supported_events)(Device, unsigned long long *) = nullptr;
  Return (*set_create)(EventSet *) = nullptr;
  Return (*set_free)(EventSet) = nullptr;
  Return (*register_events)(Device, unsigned long long, EventSet) = nullptr;
  Return (*set_wait)(EventSet, EventData *, unsigned timeout_ms) = nullptr;

  // From here on an entry may be null: an older driver.
  Return (*whole_gpu)(Device mig, Device *) = nullptr;           // R450
  Return (*system_create)(SystemSetRequest *) = nullptr;         // R575
  Return (*system_free)(SystemSetRequest *) = nullptr;           // R575
  Return (*system_register)(SystemRegisterRequest *) = nullptr;  // R575
  Return (*system_wait)(SystemWaitRequest *) = nullptr;          // R575
  bool system_events() const { return system_create && system_free && system_register && system_wait; }
};

// Opens `name` as the loader would (a path opens just that file). Once opened a library stays open: a thread may be stuck in
// it. Throws GFT_NOT_FOUND with the loader's words when there is none, GFT_VERSION when a call is missing.
const Library &open(const std::string &name);

// "GPU is lost (15)"
std::string told(const Library &library, Return code);

}  // namespace gft::watch::nvml
