// Fills the table from libnvidia-ml.so.1, or from any library of that interface that is named instead.
// Only here the library is opened; several watchers of one process share one table per library.
#include <dlfcn.h>
#include <link.h>

#include <map>
#include <memory>
#include <mutex>

#include "../support/fail.h"
#include "nvml.h"

namespace gft::watch::nvml {
namespace {

struct Opened {
  void *handle;
  const std::string &name;

  template <typename F>
  void optional(F &entry, const char *symbol) const {
    entry = reinterpret_cast<F>(dlsym(handle, symbol));
  }
  template <typename F>
  void required(F &entry, const char *symbol) const {
    optional(entry, symbol);
    if (!entry)
      fail(GFT_VERSION, "%s has no %s; the watcher needs the NVML of a driver of branch 450 or newer", name.c_str(), symbol);
  }
};

void fill(Library &table, const Opened &library) {
  library.required(table.init, "nvmlInit_v2");
  library.required(table.shutdown, "nvmlShutdown");
  library.required(table.error_string, "nvmlErrorString");
  library.required(table.driver_version, "nvmlSystemGetDriverVersion");
  library.required(table.count, "nvmlDeviceGetCount_v2");
  library.required(table.by_index, "nvmlDeviceGetHandleByIndex_v2");
  library.required(table.by_uuid, "nvmlDeviceGetHandleByUUID");
  library.required(table.by_bus_id, "nvmlDeviceGetHandleByPciBusId_v2");
  library.required(table.index, "nvmlDeviceGetIndex");
  library.required(table.uuid, "nvmlDeviceGetUUID");
  library.required(table.name, "nvmlDeviceGetName");
  library.required(table.pci_info, "nvmlDeviceGetPciInfo_v3");
  library.required(table.field_values, "nvmlDeviceGetFieldValues");
  library.required(table.temperature, "nvmlDeviceGetTemperature");
  library.required(table.supported_events, "nvmlDeviceGetSupportedEventTypes");
  library.required(table.set_create, "nvmlEventSetCreate");
  library.required(table.set_free, "nvmlEventSetFree");
  library.required(table.register_events, "nvmlDeviceRegisterEvents");
  library.required(table.set_wait, "nvmlEventSetWait_v2");
  library.optional(table.whole_gpu, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle");
  library.optional(table.system_create, "nvmlSystemEventSetCreate");
  library.optional(table.system_free, "nvmlSystemEventSetFree");
  library.optional(table.system_register, "nvmlSystemRegisterEvents");
  library.optional(table.system_wait, "nvmlSystemEventSetWait");
}

}  // namespace

const Library &open(const std::string &name) {
  static auto *mutex = new std::mutex;  // these two outlive static destructors, as the threads that use the tables do
  static auto *tables = new std::map<void *, std::unique_ptr<Library>>;
  void *handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    fail(GFT_NOT_FOUND,
         "NVML cannot be opened (%s); install the NVIDIA driver's libraries, or name a library: "
         "`dynamo-gpu-ft inject build` makes a simulated one",
         dlerror());
  std::lock_guard lock(*mutex);
  auto &table = (*tables)[handle];
  if (!table) {
    auto made = std::make_unique<Library>();
    fill(*made, {handle, name});
    struct link_map *map = nullptr;
    made->path = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name ? map->l_name : name;
    table = std::move(made);
  }
  return *table;
}

std::string told(const Library &library, Return code) {
  const char *text = library.error_string(code);
  return std::string(text ? text : "error") + " (" + std::to_string(code) + ")";
}

}  // namespace gft::watch::nvml
