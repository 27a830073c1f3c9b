// Python's StridedCopy, Relayout and Converter.
// Buffers and names are gathered with the GIL; checks, copies and conversions run without it.
#include <algorithm>

#include "bind_disk.h"
#include "gft_relayout.h"

namespace bind {
namespace {

using Dim = std::tuple<uint64_t, uint64_t, uint64_t>;

struct PyRelayout {
  std::shared_ptr<gft_relayout> handle;
  std::vector<uint64_t> source_bytes;
  uint64_t target_bytes = 0;
};

struct PyTarget {
  std::string hash;
  std::optional<std::string> parent;
  uint64_t position;
  std::vector<std::string> sources;
};

struct PyConverted {
  std::vector<std::string> statuses;
  uint64_t bytes = 0;
  double seconds = 0;
  std::string detail;
};

struct PyConverter {
  std::shared_ptr<gft_converter> handle;
};

gft_strided_copy make_copy(uint64_t source, uint64_t start, uint64_t to, const std::vector<Dim> &dims, uint64_t bytes) {
  if (dims.size() > GFT_COPY_DIMS)
    raise_core_error("invalid", "a strided copy of " + std::to_string(dims.size()) + " dimensions; it has at most 5");
  gft_strided_copy copy{};
  copy.source = source;
  copy.from = start;
  copy.to = to;
  copy.bytes = bytes;
  for (const auto &[count, from_stride, to_stride] : dims) {
    copy.count[copy.dims] = count;
    copy.from_stride[copy.dims] = from_stride;
    copy.to_stride[copy.dims++] = to_stride;
  }
  return copy;
}

PyRelayout make_relayout(const std::vector<gft_strided_copy> &copies, const std::vector<uint64_t> &source_bytes,
                         uint64_t target_bytes) {
  gft_relayout *raw = nullptr;
  call([&] {
    return gft_relayout_create(copies.data(), copies.size(), source_bytes.data(), source_bytes.size(), target_bytes, &raw);
  });
  return {owned(raw, gft_relayout_free), source_bytes, target_bytes};
}

// The address of a contiguous buffer of exactly `bytes`.
uint8_t *memory_of(const py::buffer &buffer, bool writable, uint64_t bytes, const char *what, std::vector<py::buffer_info> &keep) {
  py::buffer_info info = buffer.request(writable);
  uint64_t size = static_cast<uint64_t>(info.itemsize);
  bool contiguous = true;
  for (auto i = info.ndim; i-- > 0; size *= static_cast<uint64_t>(info.shape[static_cast<size_t>(i)]))
    contiguous = contiguous && info.strides[static_cast<size_t>(i)] == static_cast<py::ssize_t>(size);
  if (!contiguous || size != bytes)
    raise_core_error("invalid", std::string(what) + " of " + std::to_string(size) + " bytes; the plan needs contiguous " +
                                    std::to_string(bytes));
  auto *address = static_cast<uint8_t *>(info.ptr);
  keep.push_back(std::move(info));
  return address;
}

void run(const PyRelayout &relayout, const std::vector<py::buffer> &sources, const py::buffer &target) {
  if (sources.size() != relayout.source_bytes.size())
    raise_core_error("invalid", std::to_string(sources.size()) + " source payloads; the plan needs " +
                                    std::to_string(relayout.source_bytes.size()));
  std::vector<py::buffer_info> keep;
  std::vector<const uint8_t *> from;
  for (size_t i = 0; i < sources.size(); ++i)
    from.push_back(memory_of(sources[i], false, relayout.source_bytes[i], "a source payload", keep));
  uint8_t *to = memory_of(target, true, relayout.target_bytes, "a target payload", keep);
  call([&] { return gft_relayout_run(relayout.handle.get(), from.data(), to); });
}

std::vector<std::pair<uint64_t, uint64_t>> ranges(const PyRelayout &relayout, size_t source) {
  std::vector<std::pair<uint64_t, uint64_t>> out;
  call([&] {
    return gft_relayout_ranges(
        relayout.handle.get(), source,
        [](void *context, uint64_t begin, uint64_t bytes) {
          static_cast<decltype(out) *>(context)->emplace_back(begin, bytes);
        },
        &out);
  });
  return out;
}

PyConverter make_converter(const PyWriter &writer, const PyArena &source, uint32_t name_space, uint64_t max_epoch,
                           const std::vector<uint32_t> &shards, const std::vector<const PyRelayout *> &phases) {
  std::vector<gft_relayout *> plans;
  for (const PyRelayout *phase : phases) plans.push_back(phase->handle.get());
  auto arena = source.get();
  gft_converter *raw = nullptr;
  call([&] {
    return gft_converter_create(writer.handle.get(), arena.get(), name_space, max_epoch, shards.data(), shards.size(),
                                plans.data(), plans.size(), &raw);
  });
  return {owned(raw, gft_converter_free)};
}

PyConverter make_from_logs(const PyWriter &writer, const std::vector<const PyLog *> &logs, const py::bytes &namespace_id,
                           uint64_t payload_bytes, uint64_t max_epoch, const std::vector<uint32_t> &shards,
                           const std::vector<const PyRelayout *> &phases) {
  std::string id = bytes_of(namespace_id);
  if (id.size() != 16 || logs.size() != shards.size())
    raise_core_error("invalid", "a converter of " + std::to_string(logs.size()) + " logs and " + std::to_string(shards.size()) +
                                    " shards; each shard has a log, and a namespace id 16 bytes");
  std::vector<gft_relayout *> plans;
  for (const PyRelayout *phase : phases) plans.push_back(phase->handle.get());
  std::vector<gft_disk *> opened;
  for (const PyLog *log : logs) opened.push_back(log->get());
  gft_converter *raw = nullptr;
  call([&] {
    return gft_converter_create_from_logs(writer.handle.get(), opened.data(), reinterpret_cast<const uint8_t *>(id.data()),
                                          payload_bytes, max_epoch, shards.data(), shards.size(), plans.data(), plans.size(),
                                          &raw);
  });
  return {owned(raw, gft_converter_free)};
}

PyConverted convert(const PyConverter &converter, const std::vector<const PyTarget *> &targets,
                    const std::optional<py::bytes> &source_parent, double timeout) {
  std::vector<std::vector<gft_bytes>> names;
  std::vector<gft_target> raw;
  names.reserve(targets.size());
  for (const PyTarget *target : targets) {
    names.push_back(views(target->sources));
    raw.push_back({view(target->hash), view(target->parent), target->position, names.back().data(), names.back().size()});
  }
  auto parent = bytes_of(source_parent);
  PyConverted out;
  call([&] {
    return gft_converter_convert(
        converter.handle.get(), raw.data(), raw.size(), view(parent), timeout,
        [](void *context, const gft_converted *result) {
          auto &out = *static_cast<PyConverted *>(context);
          for (size_t i = 0; i < result->count; ++i) out.statuses.emplace_back(gft_status_name(result->statuses[i]));
          out.bytes = result->bytes;
          out.seconds = result->seconds;
          out.detail = result->detail;
        },
        &out);
  });
  return out;
}

}  // namespace

void bind_relayout(py::module_ &module) {
  py::class_<gft_strided_copy>(module, "StridedCopy")
      .def(py::init(&make_copy), py::arg("source"), py::arg("start"), py::arg("to"), py::arg("dims"), py::arg("bytes"));

  py::class_<PyRelayout>(module, "Relayout")
      .def(py::init(&make_relayout), py::arg("copies"), py::arg("source_bytes"), py::arg("target_bytes"))
      .def_readonly("source_bytes", &PyRelayout::source_bytes)
      .def_readonly("target_bytes", &PyRelayout::target_bytes)
      .def("run", run, py::arg("sources"), py::arg("target"))
      .def("ranges", ranges, py::arg("source"));

  py::class_<PyTarget>(module, "Target")
      .def(py::init([](const py::bytes &hash, const std::optional<py::bytes> &parent, uint64_t position,
                       const py::sequence &sources) {
             return PyTarget{bytes_of(hash), bytes_of(parent), position, bytes_of(sources)};
           }),
           py::arg("block_hash"), py::arg("parent_hash"), py::arg("position"), py::arg("source_hashes"));

  py::class_<PyConverted>(module, "Converted")
      .def_readonly("statuses", &PyConverted::statuses)
      .def_readonly("bytes", &PyConverted::bytes)
      .def_readonly("seconds", &PyConverted::seconds)
      .def_readonly("detail", &PyConverted::detail);

  py::class_<PyConverter>(module, "Converter")
      .def(py::init(&make_converter), py::arg("writer"), py::arg("source"), py::kw_only(), py::arg("namespace"),
           py::arg("max_epoch"), py::arg("shards"), py::arg("phases"))
      .def_static("from_logs", make_from_logs, py::arg("writer"), py::arg("logs"), py::kw_only(), py::arg("namespace_id"),
                  py::arg("payload_bytes"), py::arg("max_epoch"), py::arg("shards"), py::arg("phases"))
      .def("convert", convert, py::arg("targets"), py::kw_only(), py::arg("source_parent"), py::arg("timeout"))
      .def("cancel", [](const PyConverter &c) { call([&] { return gft_converter_cancel(c.handle.get()); }); });
}

}  // namespace bind
