// Python's side of the kernel log: lines and whole logs as lists of records.
// The log is parsed without the GIL; only what it says about GPUs becomes objects.
#include "bind_watch.h"

namespace bind {
namespace {

int format_of(const std::string &name) {
  const char *const names[] = {"auto", "text", "kmsg", "journal"};
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) return i;
  raise_core_error("invalid", "format \"" + name + "\" of a log; it must be auto, text, kmsg or journal");
}

gft_bytes bytes_in(const py::buffer_info &info) {
  if (info.ndim != 1 || info.itemsize != 1 || (info.size && info.strides[0] != 1))
    throw py::value_error("a log must be contiguous bytes");
  return {static_cast<const uint8_t *>(info.ptr), static_cast<size_t>(info.size)};
}

std::vector<PyWatchRecord> parse_log(const py::object &source, const std::string &format, double window) {
  std::vector<PyWatchRecord> out;
  int chosen = format_of(format);
  if (PyObject_CheckBuffer(source.ptr())) {
    py::buffer_info info = py::reinterpret_borrow<py::buffer>(source).request();
    gft_bytes log = bytes_in(info);
    call([&] { return gft_watch_parse_log(log, chosen, window, collect, &out); });
  } else {
    std::string path = py::module_::import("os").attr("fsencode")(source).cast<std::string>();
    call([&] { return gft_watch_parse_file(path.c_str(), chosen, window, collect, &out); });
  }
  return out;
}

std::optional<PyWatchRecord> parse_line(const py::bytes &line) {
  std::vector<PyWatchRecord> out;
  std::string bytes = bytes_of(line);
  call([&] { return gft_watch_parse_line(view(bytes), collect, &out); });
  if (out.empty()) return std::nullopt;
  return std::move(out.front());
}

}  // namespace

void bind_watch_log(py::module_ &module) {
  module.def("parse_line", parse_line, py::arg("line"));
  module.def("parse_log", parse_log, py::arg("source"), py::kw_only(), py::arg("format") = "auto", py::arg("window") = 1.0);
}

}  // namespace bind
