// Python's side of the watchers' queue: records become small read-only objects.
// Taking builds objects with the GIL; waiting releases it, in slices so that Ctrl-C is heard.
#include "bind_watch.h"

#include <algorithm>

namespace bind {
namespace {

constexpr double kSlice = 0.1;

std::string text_of(gft_bytes bytes) { return {reinterpret_cast<const char *>(bytes.data), bytes.size}; }

// A log may hold any bytes; what is no UTF-8 is shown escaped.
py::object shown(const std::string &text) {
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "backslashreplace"));
}

}  // namespace

void collect(void *context, const gft_watch_record *r) {
  PyWatchRecord record{r->source, r->what, r->at_ns, r->last_ns, r->count, r->serial, r->index, r->code,
                       r->gi,     r->ci,   r->pid,   {},         {},       {},        {}};
  record.bdf = text_of(r->bdf);
  record.uuid = text_of(r->uuid);
  record.text = text_of(r->text);
  for (size_t i = 0; i < r->fact_count; ++i) record.facts.emplace_back(r->facts[i].name, text_of(r->facts[i].value));
  static_cast<std::vector<PyWatchRecord> *>(context)->push_back(std::move(record));
}

void bind_watch(py::module_ &module) {
  py::class_<PyWatchRecord>(module, "WatchRecord")
      .def_readonly("source", &PyWatchRecord::source)
      .def_readonly("what", &PyWatchRecord::what)
      .def_readonly("at_ns", &PyWatchRecord::at_ns)
      .def_readonly("last_ns", &PyWatchRecord::last_ns)
      .def_readonly("count", &PyWatchRecord::count)
      .def_readonly("serial", &PyWatchRecord::serial)
      .def_readonly("index", &PyWatchRecord::index)
      .def_readonly("code", &PyWatchRecord::code)
      .def_readonly("gi", &PyWatchRecord::gi)
      .def_readonly("ci", &PyWatchRecord::ci)
      .def_readonly("pid", &PyWatchRecord::pid)
      .def_readonly("bdf", &PyWatchRecord::bdf)
      .def_readonly("uuid", &PyWatchRecord::uuid)
      .def_property_readonly("text", [](const PyWatchRecord &r) { return shown(r.text); })
      .def_property_readonly("facts", [](const PyWatchRecord &r) {
        py::dict out;
        for (const auto &[name, value] : r.facts) out[py::str(name)] = shown(value);
        return out;
      });

  py::class_<PyWatchQueue>(module, "WatchQueue")
      .def(py::init([](size_t capacity, uintptr_t on_record, uintptr_t context) {
             gft_watch_queue *handle = nullptr;
             call([&] {
               return gft_watch_queue_create(capacity, reinterpret_cast<gft_watch_callback>(on_record),
                                             reinterpret_cast<void *>(context), &handle);
             });
             return PyWatchQueue{owned(handle, gft_watch_queue_free)};
           }),
           py::arg("capacity") = 4096, py::kw_only(), py::arg("on_record") = 0, py::arg("context") = 0)
      .def(
          "take",
          [](const PyWatchQueue &queue, size_t limit) {
            std::vector<PyWatchRecord> out;
            call([&] { return gft_watch_queue_take(queue.get(), limit, collect, &out); });
            return out;
          },
          py::arg("limit") = 0)
      .def(
          "wait",
          [](const PyWatchQueue &queue, double timeout) {
            for (int ready = 0;; timeout -= kSlice) {
              call([&] { return gft_watch_queue_wait(queue.get(), std::min(timeout, kSlice), &ready); });
              if (ready || !(timeout > kSlice)) return ready != 0;
              if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            }
          },
          py::arg("timeout"))
      .def("fileno", [](const PyWatchQueue &queue) { return gft_watch_queue_descriptor(queue.get()); })
      .def_property_readonly("lost", [](const PyWatchQueue &queue) { return gft_watch_queue_lost(queue.get()); });
}

}  // namespace bind
