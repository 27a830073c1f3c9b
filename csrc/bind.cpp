// The Python module: errors, digests and build facts; the classes are bound in bind_*.cpp.
// Nothing happens here but translation: arguments in, GIL released, status out as CoreError.
#include "bind.h"
#include "gft_disk.h"

namespace bind {
namespace {
PyObject *core_error = nullptr;  // owned by the module for the life of the process
}

void raise_core_error(const char *code, const std::string &text) {
  // Paths and hostile files put any bytes into a message.
  auto shown = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "backslashreplace"));
  py::object error = py::reinterpret_borrow<py::object>(core_error)(shown);
  error.attr("code") = code;
  PyErr_SetObject(core_error, error.ptr());
  throw py::error_already_set();
}

void check(gft_status status) {
  if (status != GFT_OK) raise_core_error(gft_status_name(status), gft_last_error());
}

std::string bytes_of(const py::bytes &bytes) { return static_cast<std::string>(bytes); }

std::optional<std::string> bytes_of(const std::optional<py::bytes> &bytes) {
  return bytes ? std::optional<std::string>(bytes_of(*bytes)) : std::nullopt;
}

std::vector<std::string> bytes_of(const py::sequence &many) {
  std::vector<std::string> out;
  out.reserve(many.size());
  for (py::handle item : many) {
    if (!py::isinstance<py::bytes>(item)) throw py::type_error("block hashes must be bytes");
    out.push_back(bytes_of(py::reinterpret_borrow<py::bytes>(item)));
  }
  return out;
}

namespace {

py::list digest_kinds() {
  py::list out;
  const char *name = nullptr, *variant = nullptr;
  for (size_t i = 0; gft_digest_kind(i, &name, &variant) == GFT_OK; ++i) out.append(py::make_tuple(name, variant));
  return out;
}

py::bytes digest(const py::buffer &data, std::optional<size_t> kind) {
  py::buffer_info info = data.request();
  py::ssize_t expected = info.itemsize;
  for (auto i = info.ndim; i-- > 0; expected *= info.shape[static_cast<size_t>(i)])
    if (info.strides[static_cast<size_t>(i)] != expected) throw py::value_error("digest needs contiguous data");
  uint8_t out[16];
  gft_status status = GFT_OK;
  {
    py::gil_scoped_release released;
    auto bytes = static_cast<size_t>(info.size * info.itemsize);
    if (kind)
      status = gft_digest_by(*kind, info.ptr, bytes, out);
    else
      gft_digest(info.ptr, bytes, out);
  }
  check(status);
  return {reinterpret_cast<const char *>(out), sizeof out};
}

py::dict build_info() {
  py::dict info;
  info["version"] = gft_version();
  info["digest"] = gft_digest_name();
  info["digest_variant"] = gft_digest_variant();
  info["xxhash"] = gft_xxhash_version();
  info["io_uring"] = gft_disk_uring_version();
  info["zstd"] = gft_disk_codec_version(1);
  info["lz4"] = gft_disk_codec_version(2);
  info["compiler"] = "g++ " __VERSION__;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return info;
}

}  // namespace
}  // namespace bind

PYBIND11_MODULE(_core, module) {
  using namespace bind;
  module.doc() = "Host core of dynamo_gpu_ft: arena, digest, copy engine, ledger.";
  core_error = PyErr_NewException("dynamo_gpu_ft.native._core.CoreError", PyExc_RuntimeError, nullptr);
  if (!core_error) throw py::error_already_set();
  module.attr("CoreError") = py::reinterpret_borrow<py::object>(core_error);
  module.attr("VERSION") = gft_version();
  module.attr("DIGEST") = gft_digest_name();
  module.def("build_info", build_info);
  module.def("digest", digest, py::arg("data"), py::arg("kind") = py::none());
  module.def("digest_kinds", digest_kinds);
  bind_arena(module);
  bind_writer(module);
  bind_copy(module);
  bind_device(module);
  bind_ledger(module);
  bind_relayout(module);
  bind_place(module);
  bind_disk(module);
  bind_backing(module);
  bind_watch(module);
  bind_beats(module);
  bind_watch_log(module);
  bind_watch_nvml(module);
}
