// Python's NvmlWatcher: translation only, as in bind_watch.cpp, whose queue it fills.
// Starting and stopping release the GIL; freeing one never waits.
#include "bind_watch.h"

namespace bind {
namespace {

struct PyNvmlWatcher {
  std::shared_ptr<gft_nvml_watcher> handle;
  std::shared_ptr<gft_watch_queue> queue;  // so that whoever has the watcher has somewhere to read from
};

struct PyWatchedGpu {
  int index;
  std::string uuid, bdf, name;
  uint64_t supported, registered;
  bool responsive, avoided, lost;
  int recovery_action;
};

std::string text_of(gft_bytes bytes) { return {reinterpret_cast<const char *>(bytes.data), bytes.size}; }

PyNvmlWatcher make(const PyWatchQueue &queue, const std::string &library,
                   const std::optional<std::vector<std::string>> &gpus, double poll_s, double call_deadline_s) {
  std::vector<gft_bytes> names;
  if (gpus) names = views(*gpus);
  static const gft_bytes nobody = {nullptr, 0};
  const gft_nvml_options options = {library.c_str(),
                                    !gpus           ? nullptr
                                    : names.empty() ? &nobody
                                                    : names.data(),
                                    names.size(), poll_s, call_deadline_s};
  gft_nvml_watcher *handle = nullptr;
  call([&] { return gft_nvml_watcher_create(queue.get(), &options, &handle); });
  return {owned(handle, gft_nvml_watcher_free), queue.handle};
}

std::vector<PyWatchedGpu> gpus(const PyNvmlWatcher &watcher) {
  std::vector<PyWatchedGpu> out;
  call([&] {
    return gft_nvml_watcher_gpus(
        watcher.handle.get(),
        [](void *context, const gft_nvml_gpu *gpu) {
          static_cast<decltype(out) *>(context)->push_back(
              {gpu->index, text_of(gpu->uuid), text_of(gpu->bdf), text_of(gpu->name), gpu->supported, gpu->registered,
               gpu->responsive != 0, gpu->avoided != 0, gpu->lost != 0, gpu->recovery_action});
        },
        &out);
  });
  return out;
}

std::string about(const PyNvmlWatcher &watcher, const char *wanted) {
  std::pair<std::string, std::string> found{wanted, ""};
  call([&] {
    return gft_nvml_watcher_about(
        watcher.handle.get(),
        [](void *context, const char *name, const char *value) {
          auto *told = static_cast<decltype(found) *>(context);
          if (told->first == name) told->second = value;
        },
        &found);
  });
  return found.second;
}

py::dict counts(const PyNvmlWatcher &watcher) {
  std::vector<std::pair<std::string, uint64_t>> found;
  call([&] {
    return gft_nvml_watcher_counts(
        watcher.handle.get(),
        [](void *context, const char *name, uint64_t value) {
          static_cast<decltype(found) *>(context)->emplace_back(name, value);
        },
        &found);
  });
  py::dict out;
  for (const auto &[name, value] : found) out[name.c_str()] = value;
  return out;
}

}  // namespace

void bind_watch_nvml(py::module_ &module) {
  py::class_<PyWatchedGpu>(module, "WatchedGpu")
      .def_readonly("index", &PyWatchedGpu::index)
      .def_readonly("uuid", &PyWatchedGpu::uuid)
      .def_readonly("bdf", &PyWatchedGpu::bdf)
      .def_readonly("name", &PyWatchedGpu::name)
      .def_readonly("supported", &PyWatchedGpu::supported)
      .def_readonly("registered", &PyWatchedGpu::registered)
      .def_readonly("responsive", &PyWatchedGpu::responsive)
      .def_readonly("avoided", &PyWatchedGpu::avoided)
      .def_readonly("lost", &PyWatchedGpu::lost)
      .def_readonly("recovery_action", &PyWatchedGpu::recovery_action);

  py::class_<PyNvmlWatcher>(module, "NvmlWatcher")
      .def(py::init(&make), py::arg("queue"), py::kw_only(), py::arg("library") = "libnvidia-ml.so.1",
           py::arg("gpus") = py::none(), py::arg("poll_s") = 0.25, py::arg("call_deadline_s") = 2.0)
      .def("start", [](const PyNvmlWatcher &w) { call([&] { return gft_nvml_watcher_start(w.handle.get()); }); })
      .def(
          "stop",
          [](const PyNvmlWatcher &w, double deadline) {
            int ended = 0;
            call([&] { return gft_nvml_watcher_stop(w.handle.get(), deadline, &ended); });
            return ended != 0;
          },
          py::arg("deadline") = 5.0)
      .def("gpus", gpus)
      .def("counts", counts)
      .def_property_readonly("driver_version", [](const PyNvmlWatcher &w) { return about(w, "driver"); })
      .def_property_readonly("library", [](const PyNvmlWatcher &w) { return about(w, "library"); })
      .def(
          "avoid",
          [](const PyNvmlWatcher &w, int index) {
            int known = 0;
            call([&] { return gft_nvml_watcher_avoid(w.handle.get(), index, &known); });
            return known != 0;
          },
          py::arg("index"));
}

}  // namespace bind
