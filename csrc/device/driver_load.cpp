// Fills the table from libcuda.so.1. Every entry is asked for by name and version, because one name has several shapes.
// Only here the library is opened; it stays open, since a driver that was unloaded cannot be loaded again.
#include <dlfcn.h>

#include <memory>
#include <mutex>

#include "../support/fail.h"
#include "driver.h"

namespace gft::device {
namespace {

using Lookup12 = Result (*)(const char *, void **, int version, uint64_t flags, int *found);  // 12.0
using Lookup11 = Result (*)(const char *, void **, int version, uint64_t flags);              // 11.3

struct Library {
  Lookup12 newer = nullptr;
  Lookup11 older = nullptr;

  void *find(const char *symbol, int version) const {
    void *found = nullptr;
    int how = 0;
    Result result = newer ? newer(symbol, &found, version, 0, &how) : older(symbol, &found, version, 0);
    return result == kSuccess ? found : nullptr;
  }
  template <typename F>
  void optional(F &entry, const char *symbol, int version) const {
    entry = reinterpret_cast<F>(find(symbol, version));
  }
  template <typename F>
  void required(F &entry, const char *symbol, int version) const {
    optional(entry, symbol, version);
    if (!entry)
      fail(GFT_VERSION, "libcuda.so.1 has no %s of CUDA %d.%d; the device copy path needs a driver for CUDA 11.4 or newer",
           symbol, version / 1000, version % 1000 / 10);
  }
};

void fill(Driver &driver, const Library &library) {
  library.required(driver.init, "cuInit", 2000);
  library.required(driver.driver_version, "cuDriverGetVersion", 2020);
  library.required(driver.error_name, "cuGetErrorName", 6000);
  if (Result result = driver.init(0))
    fail(GFT_NOT_FOUND, "the CUDA driver is there, but cuInit says %s; look at nvidia-smi", name_of(driver, result).c_str());
  if (driver.driver_version(&driver.version) != kSuccess) driver.version = 0;
  library.required(driver.device_get, "cuDeviceGet", 2000);
  library.required(driver.device_name, "cuDeviceGetName", 2000);
  library.required(driver.device_uuid, "cuDeviceGetUuid", 11040);
  library.required(driver.device_attribute, "cuDeviceGetAttribute", 2000);
  library.required(driver.context_retain, "cuDevicePrimaryCtxRetain", 7000);
  library.required(driver.context_release, "cuDevicePrimaryCtxRelease", 11000);
  library.required(driver.context_push, "cuCtxPushCurrent", 4000);
  library.required(driver.context_pop, "cuCtxPopCurrent", 4000);
  library.required(driver.priority_range, "cuCtxGetStreamPriorityRange", 5050);
  library.required(driver.stream_create, "cuStreamCreateWithPriority", 5050);
  library.required(driver.stream_destroy, "cuStreamDestroy", 4000);
  library.required(driver.stream_wait, "cuStreamWaitEvent", 3020);
  library.required(driver.event_create, "cuEventCreate", 2000);
  library.required(driver.event_destroy, "cuEventDestroy", 4000);
  library.required(driver.event_record, "cuEventRecord", 2000);
  library.required(driver.event_query, "cuEventQuery", 2000);
  library.required(driver.memory_allocate, "cuMemAlloc", 3020);
  library.required(driver.memory_free, "cuMemFree", 3020);
  library.required(driver.host_allocate, "cuMemHostAlloc", 2020);
  library.required(driver.host_free, "cuMemFreeHost", 2000);
  library.required(driver.host_register, "cuMemHostRegister", 6050);
  library.required(driver.host_unregister, "cuMemHostUnregister", 4000);
  library.required(driver.copy_out, "cuMemcpyDtoHAsync", 3020);
  library.required(driver.copy_in, "cuMemcpyHtoDAsync", 3020);
  library.optional(driver.stream_capturing, "cuStreamIsCapturing", 10000);
  // The batched copy's legacy shape stays in newer drivers; the newer one is what they are tested with.
  if (driver.version >= 13000) library.optional(driver.copy_batch_13, "cuMemcpyBatchAsync", 13000);
  if (driver.version >= 12080 && !driver.copy_batch_13) library.optional(driver.copy_batch_12, "cuMemcpyBatchAsync", 12080);
  library.optional(driver.module_load, "cuModuleLoadData", 2000);
  library.optional(driver.module_unload, "cuModuleUnload", 2000);
  library.optional(driver.module_function, "cuModuleGetFunction", 2000);
  library.optional(driver.launch, "cuLaunchKernel", 4000);
  driver.name =
      "CUDA driver " + std::to_string(driver.version / 1000) + "." + std::to_string(driver.version % 1000 / 10);
}

}  // namespace

bool is_fatal(Result result) {
  switch (result) {
    case 4:    // deinitialized: the process is ending
    case 46:   // device unavailable
    case 214:  // uncorrectable ECC error
    case 220:  // uncorrectable NVLink error
    case 226:  // contained error
    case 700:  // illegal address
    case 702:  // launch timeout
    case 709:  // context destroyed
    case 710:  // assert
    case 714:  // hardware stack error
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // invalid address space
    case 718:  // invalid program counter
    case 719:  // launch failed
    case 721:  // tensor memory leak
      return true;
    default:
      return false;
  }
}

std::string name_of(const Driver &driver, Result result) {
  const char *name = nullptr;
  if (!driver.error_name || driver.error_name(result, &name) != kSuccess || !name) name = "CUDA error";
  return std::string(name) + " (" + std::to_string(result) + ")";
}

const Driver &cuda_driver() {
  static std::mutex mutex;
  static Driver *filled = nullptr;  // leaked on purpose: used until the process ends
  std::lock_guard lock(mutex);
  if (filled) return *filled;
  void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    fail(GFT_NOT_FOUND, "there is no NVIDIA driver here (%s); without one KV on a device cannot be copied", dlerror());
  Library library;
  library.newer = reinterpret_cast<Lookup12>(dlsym(handle, "cuGetProcAddress_v2"));
  library.older = reinterpret_cast<Lookup11>(dlsym(handle, "cuGetProcAddress"));
  if (!library.newer && !library.older)
    fail(GFT_VERSION, "libcuda.so.1 has no cuGetProcAddress; the device copy path needs a driver for CUDA 11.4 or newer");
  auto made = std::make_unique<Driver>();
  fill(*made, library);
  filled = made.release();
  return *filled;
}

}  // namespace gft::device
