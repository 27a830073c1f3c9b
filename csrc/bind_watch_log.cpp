// Python's side of the kernel log: lines and whole logs as lists of records, and the threads that follow a log or tracepoints.
// Logs are parsed without the GIL; only what they say about GPUs becomes objects.
#include "bind_watch.h"

namespace bind {
namespace {

int format_of(const std::string &name) {
  const char *const names[] = {"auto", "text", "kmsg", "journal"};
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) return i;
  raise_core_error("invalid", "format \"" + name + "\" of a log; it must be auto, text, kmsg or journal");
}

std::string path_of(const py::object &path) { return py::module_::import("os").attr("fsencode")(path).cast<std::string>(); }

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
    std::string path = path_of(source);
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

struct PyLogReader {
  std::shared_ptr<gft_log_reader> handle;
};

struct PyTraceReader {
  std::shared_ptr<gft_trace_reader> handle;
};

template <typename Reader>
Reader &open(Reader &reader) {
  if (!reader.handle) raise_core_error("closed", "this reader was stopped; make another");
  return reader;
}

void bind_readers(py::module_ &module) {
  py::class_<PyLogReader>(module, "LogReader")
      .def(py::init([](const PyWatchQueue &queue, const py::object &path, const std::string &format, bool from_start, double window) {
             gft_log_reader *handle = nullptr;
             std::string name = path_of(path);
             int chosen = format_of(format);
             call([&] { return gft_log_reader_start(queue.get(), name.c_str(), chosen, from_start, window, &handle); });
             return PyLogReader{owned(handle, gft_log_reader_free)};
           }),
           py::arg("queue"), py::arg("path"), py::kw_only(), py::arg("format") = "auto", py::arg("from_start") = false,
           py::arg("window") = 1.0)
      .def_property_readonly("lines", [](PyLogReader &reader) { return gft_log_reader_lines(open(reader).handle.get()); })
      .def("stop", [](PyLogReader &reader) { reader.handle.reset(); });

  py::class_<PyTraceReader>(module, "TraceReader")
      .def(py::init([](const PyWatchQueue &queue, const py::object &path, const std::vector<std::string> &events, double window) {
             gft_trace_reader *handle = nullptr;
             std::string name = path_of(path);
             std::vector<const char *> names;
             for (const auto &event : events) names.push_back(event.c_str());
             call([&] { return gft_trace_reader_start(queue.get(), name.c_str(), names.data(), names.size(), window, &handle); });
             return PyTraceReader{owned(handle, gft_trace_reader_free)};
           }),
           py::arg("queue"), py::arg("path") = "", py::kw_only(), py::arg("events") = std::vector<std::string>(),
           py::arg("window") = 1.0)
      .def_property_readonly("lines", [](PyTraceReader &reader) { return gft_trace_reader_lines(open(reader).handle.get()); })
      .def_property_readonly("events",
                             [](PyTraceReader &reader) {
                               std::vector<std::string> out;
                               for (size_t i = 0; const char *name = gft_trace_reader_event(open(reader).handle.get(), i); ++i)
                                 out.emplace_back(name);
                               return out;
                             })
      .def("stop", [](PyTraceReader &reader) { reader.handle.reset(); });

  module.def(
      "log_readable",
      [](const py::object &path) {
        std::string name = path_of(path);
        call([&] { return gft_log_readable(name.c_str()); });
      },
      py::arg("path"));
  module.def(
      "trace_readable",
      [](const py::object &path) {
        std::string name = path_of(path);
        call([&] { return gft_trace_readable(name.c_str()); });
      },
      py::arg("path") = "");
}

}  // namespace

void bind_watch_log(py::module_ &module) {
  module.def("parse_line", parse_line, py::arg("line"));
  module.def("parse_log", parse_log, py::arg("source"), py::kw_only(), py::arg("format") = "auto", py::arg("window") = 1.0);
  bind_readers(module);
}

}  // namespace bind
