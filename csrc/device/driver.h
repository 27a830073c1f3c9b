// The driver calls that the device copy path uses, as a table of plain C function pointers with our own types: no CUDA header.
// Filled from libcuda.so.1 (driver_load.cpp) or from the CPU twin (twin_table.cpp); nothing else talks to a device.
//
// Shapes and numbers are those of NVIDIA's driver API reference; the figure behind each entry is the CUDA version whose
// signature it has, which is also the version that cuGetProcAddress is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gft::device {

using Result = int;        // CUresult
using Ordinal = int;       // CUdevice
using Address = uint64_t;  // CUdeviceptr
using Context = struct ContextTag *;
using Stream = struct StreamTag *;
using Event = struct EventTag *;
using Module = struct ModuleTag *;
using Function = struct FunctionTag *;

constexpr Result kSuccess = 0, kInvalidValue = 1, kNoDevice = 100, kInvalidDevice = 101, kNoBinary = 209, kNotFound = 500,
                 kNotReady = 600, kLaunchFailed = 719, kNotSupported = 801, kUnknown = 999;
constexpr unsigned kStreamNonBlocking = 1, kEventDisableTiming = 2, kRegisterPortable = 1, kHostAllocPortable = 1;
constexpr int kMajor = 75, kMinor = 76, kPciBus = 33, kPciDevice = 34, kPciDomain = 50;
constexpr int kSourceInStreamOrder = 1;

struct Uuid {
  unsigned char bytes[16];
};
// Of a batched copy (12.8). The location hints are zero: they count for managed and pageable memory only.
struct CopyAttributes {
  int source_order;
  struct {
    int type, id;
  } source_hint, target_hint;
  unsigned flags;
};

struct Driver {
  std::string name;  // "CUDA driver 13.0", or one that begins with "simulated"
  bool simulated = false;
  int version = 0;  // 13000 is 13.0

  Result (*init)(unsigned) = nullptr;                                           // 2.0
  Result (*driver_version)(int *) = nullptr;                                    // 2.2
  Result (*error_name)(Result, const char **) = nullptr;                        // 6.0
  Result (*device_get)(Ordinal *, int) = nullptr;                               // 2.0
  Result (*device_name)(char *, int, Ordinal) = nullptr;                        // 2.0
  Result (*device_uuid)(Uuid *, Ordinal) = nullptr;                             // 11.4: the partition's under MIG
  Result (*device_attribute)(int *, int, Ordinal) = nullptr;                    // 2.0
  Result (*context_retain)(Context *, Ordinal) = nullptr;                       // 7.0
  Result (*context_release)(Ordinal) = nullptr;                                 // 11.0
  Result (*context_push)(Context) = nullptr;                                    // 4.0
  Result (*context_pop)(Context *) = nullptr;                                   // 4.0
  Result (*priority_range)(int *least, int *greatest) = nullptr;                // 5.5
  Result (*stream_create)(Stream *, unsigned flags, int priority) = nullptr;    // 5.5
  Result (*stream_destroy)(Stream) = nullptr;                                   // 4.0
  Result (*stream_wait)(Stream, Event, unsigned) = nullptr;                     // 3.2
  Result (*event_create)(Event *, unsigned) = nullptr;                          // 2.0
  Result (*event_destroy)(Event) = nullptr;                                     // 4.0
  Result (*event_record)(Event, Stream) = nullptr;                              // 2.0
  Result (*event_query)(Event) = nullptr;                                       // 2.0
  Result (*memory_allocate)(Address *, size_t) = nullptr;                       // 3.2
  Result (*memory_free)(Address) = nullptr;                                     // 3.2
  Result (*host_allocate)(void **, size_t, unsigned) = nullptr;                 // 2.2
  Result (*host_free)(void *) = nullptr;                                        // 2.0
  Result (*host_register)(void *, size_t, unsigned) = nullptr;                  // 6.5
  Result (*host_unregister)(void *) = nullptr;                                  // 4.0
  Result (*copy_out)(void *to, Address from, size_t, Stream) = nullptr;         // 3.2, device to host
  Result (*copy_in)(Address to, const void *from, size_t, Stream) = nullptr;    // 3.2, host to device

  // From here on an entry may be null: an older driver, planned around.
  Result (*stream_capturing)(Stream, int *) = nullptr;  // 10.0
  // NOTE: 13.0 dropped `fail_index`; the two have one name in the library, so the version asked for decides which one comes.
  Result (*copy_batch_12)(Address *to, Address *from, size_t *bytes, size_t count, CopyAttributes *, size_t *first,
                          size_t attributes, size_t *fail_index, Stream) = nullptr;  // 12.8
  Result (*copy_batch_13)(Address *to, Address *from, size_t *bytes, size_t count, CopyAttributes *, size_t *first,
                          size_t attributes, Stream) = nullptr;               // 13.0
  Result (*module_load)(Module *, const void *image) = nullptr;              // 2.0
  Result (*module_unload)(Module) = nullptr;                                 // 2.0
  Result (*module_function)(Function *, Module, const char *name) = nullptr;  // 2.0
  Result (*launch)(Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, Stream, void **parameters, void **extra) = nullptr;  // 4.0

  bool batches() const { return copy_batch_12 || copy_batch_13; }
  bool kernels() const { return module_load && module_unload && module_function && launch; }
};

// Whether a result means that the context, and with it everything on the device, is gone for this process.
bool is_fatal(Result result);
// "CUDA_ERROR_LAUNCH_FAILED (719)"; works with a table that could not be filled.
std::string name_of(const Driver &driver, Result result);

// The machine's driver. Loads the library on the first call and keeps it; makes no context. Throws GFT_NOT_FOUND with the
// loader's words when there is none, GFT_VERSION when a required call is missing.
const Driver &cuda_driver();
// The CPU twin's table: devices are the twins of this process (twin.h).
const Driver &twin_driver();

}  // namespace gft::device
