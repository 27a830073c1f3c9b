// Shared by the files of the pybind11 door: status -> CoreError, Python bytes -> gft_bytes, and owning handles.
// Bindings gather arguments with the GIL, release it for the call, and build results with it again.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gft.h"

namespace bind {

namespace py = pybind11;

// Raises CoreError for anything but GFT_OK. Call with the GIL.
void check(gft_status status);

template <typename Call>
void call(Call &&body) {
  gft_status status;
  {
    py::gil_scoped_release released;
    status = body();
  }
  check(status);
}

// Owns a handle and frees it without the GIL: the copy engine's end may wait for a copy.
template <typename T>
std::shared_ptr<T> owned(T *handle, void (*free_handle)(T *)) {
  return std::shared_ptr<T>(handle, [free_handle](T *last) {
    py::gil_scoped_release released;
    free_handle(last);
  });
}

inline gft_bytes view(const std::string &text) { return {reinterpret_cast<const uint8_t *>(text.data()), text.size()}; }
inline gft_bytes view(const std::optional<std::string> &text) { return text ? view(*text) : gft_bytes{nullptr, 0}; }
inline std::vector<gft_bytes> views(const std::vector<std::string> &texts) {
  std::vector<gft_bytes> out;
  for (const auto &text : texts) out.push_back(view(text));
  return out;
}

// bytes -> std::string without pybind11's acceptance of str.
std::string bytes_of(const py::bytes &bytes);
std::optional<std::string> bytes_of(const std::optional<py::bytes> &bytes);
std::vector<std::string> bytes_of(const py::sequence &many);

// The Python objects that more than one file of the door needs. A closed arena has an empty handle.
struct PyArena {
  std::shared_ptr<gft_arena> handle;
  std::string path, digest_name;
  gft_geometry geometry{};
  uint64_t file_bytes = 0;
  std::shared_ptr<gft_arena> get() const;  // raises "closed"
};
struct PyWriter {
  std::shared_ptr<gft_writer> handle;
  uint32_t shard = 0, name_space = 0;
  uint64_t epoch = 0;
};

struct PyLayout {
  std::vector<gft_region> regions;
  uint64_t block_bytes = 0, num_blocks = 0;
};

struct PyBlock {
  uint64_t block_id;
  std::string hash;
  std::optional<std::string> parent;
  uint64_t position;
};

struct PyEngine {
  std::shared_ptr<gft_engine> handle;
};
struct PyDeviceEngine : PyEngine {};
// Views into the blocks; they live as long as those.
std::vector<gft_block> views(const std::vector<const PyBlock *> &blocks);

[[noreturn]] void raise_core_error(const char *code, const std::string &text);

void bind_arena(py::module_ &module);
void bind_writer(py::module_ &module);
void bind_copy(py::module_ &module);
void bind_device(py::module_ &module);
void bind_ledger(py::module_ &module);
void bind_relayout(py::module_ &module);
void bind_place(py::module_ &module);
void bind_disk(py::module_ &module);
void bind_backing(py::module_ &module);
void bind_watch(py::module_ &module);
void bind_beats(py::module_ &module);
void bind_watch_log(py::module_ &module);
void bind_watch_nvml(py::module_ &module);

}  // namespace bind
