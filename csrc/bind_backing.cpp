// Python's Backing and backed_prefix: thin over gft_backing.h.
// Block names are tuples (hash, parent hash or None, position), copied before a call returns.
#include <algorithm>

#include "bind.h"
#include "bind_disk.h"
#include "gft_backing.h"

namespace bind {
namespace {

constexpr double kSlice = 0.1;  // seconds

struct PyBacking {
  std::shared_ptr<gft_backing> handle;
};

struct PyFetched {
  int64_t job_id;
  std::vector<std::string> statuses;
  uint64_t bytes;
  double seconds;
  std::string detail;
};

using Name = std::tuple<py::bytes, std::optional<py::bytes>, uint64_t>;

struct Names {
  std::vector<std::string> hashes;
  std::vector<std::optional<std::string>> parents;
  std::vector<gft_name> views;

  explicit Names(const std::vector<Name> &blocks) {
    for (const auto &[hash, parent, position] : blocks) {
      hashes.push_back(bytes_of(hash));
      parents.push_back(bytes_of(parent));
    }
    for (size_t i = 0; i < blocks.size(); ++i) views.push_back({view(hashes[i]), view(parents[i]), std::get<2>(blocks[i])});
  }
};

PyBacking make_backing(const PyWriter &writer, const PyLog &log, size_t queue_blocks) {
  gft_backing *raw = nullptr;
  call([&] { return gft_backing_create(writer.handle.get(), log.get(), queue_blocks, &raw); });
  return {owned(raw, gft_backing_free)};
}

std::vector<PyFetched> poll(const PyBacking &backing) {
  std::vector<PyFetched> out;
  call([&] {
    return gft_backing_poll(
        backing.handle.get(),
        [](void *context, const gft_job_result *job) {
          PyFetched fetched{job->job_id, {}, job->bytes, job->seconds, job->detail};
          for (size_t i = 0; i < job->count; ++i) fetched.statuses.emplace_back(gft_status_name(job->statuses[i]));
          static_cast<std::vector<PyFetched> *>(context)->push_back(std::move(fetched));
        },
        &out);
  });
  return out;
}

// In slices, so that Ctrl-C is heard.
bool wait(const PyBacking &backing, double timeout) {
  for (int done = 0;; timeout -= kSlice) {
    call([&] { return gft_backing_wait(backing.handle.get(), std::min(timeout, kSlice), &done); });
    if (done || !(timeout > kSlice)) return done != 0;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

gft_backing_stats stats_of(const PyBacking &backing, std::string &trouble) {
  gft_backing_stats raw{};
  call([&] {
    const char *text = "";
    gft_status status = gft_backing_stats_get(backing.handle.get(), &raw, &text);
    if (status == GFT_OK) trouble = text;
    return status;
  });
  return raw;
}

py::dict stats(const PyBacking &backing) {
  std::string trouble;
  gft_backing_stats raw = stats_of(backing, trouble);
  py::dict out;
  out["spilled_blocks"] = raw.spilled_blocks;
  out["spilled_bytes"] = raw.spilled_bytes;
  out["spill_queue"] = raw.spill_queue;
  out["dropped_queue"] = raw.dropped_queue;
  out["dropped_evicted"] = raw.dropped_evicted;
  out["dropped_log"] = raw.dropped_log;
  out["fetched_blocks"] = raw.fetched_blocks;
  out["fetched_bytes"] = raw.fetched_bytes;
  return out;
}

// Paths put any bytes into a message.
py::object trouble(const PyBacking &backing) {
  std::string text;
  stats_of(backing, text);
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "backslashreplace"));
}

py::tuple backed_prefix(const PyArena *arena, const std::vector<const PyLog *> &logs, const py::bytes &record,
                        uint64_t payload_bytes, const std::vector<uint32_t> &shards, const py::sequence &block_hashes,
                        uint64_t max_epoch) {
  if (!logs.empty() && logs.size() != shards.size()) throw py::value_error("one log (or None) per shard");
  std::string name = bytes_of(record);
  auto texts = bytes_of(block_hashes);
  auto hashes = views(texts);
  std::vector<std::shared_ptr<gft_disk>> kept;
  std::vector<gft_disk *> raw;
  for (const PyLog *log : logs) {
    if (log) kept.push_back(log->handle);
    raw.push_back(log ? log->get() : nullptr);
  }
  auto handle = arena ? arena->get() : nullptr;
  gft_backed_prefix found{};
  std::string on_disk(hashes.size(), '\0');
  call([&] {
    return gft_backed_usable_prefix(handle.get(), raw.empty() ? nullptr : raw.data(), view(name), payload_bytes,
                                    shards.data(), shards.size(), hashes.data(), hashes.size(), max_epoch, &found,
                                    reinterpret_cast<uint8_t *>(on_disk.data()));
  });
  return py::make_tuple(found.blocks, found.reason, found.shard, py::bytes(on_disk.substr(0, found.blocks)));
}

}  // namespace

void bind_backing(py::module_ &module) {
  module.def("backed_prefix", backed_prefix, py::kw_only(), py::arg("arena"), py::arg("logs"), py::arg("record"),
             py::arg("payload_bytes"), py::arg("shards"), py::arg("block_hashes"), py::arg("max_epoch"));

  py::class_<PyFetched>(module, "Fetched")
      .def_readonly("job_id", &PyFetched::job_id)
      .def_readonly("statuses", &PyFetched::statuses)
      .def_readonly("bytes", &PyFetched::bytes)
      .def_readonly("seconds", &PyFetched::seconds)
      .def_readonly("detail", &PyFetched::detail);

  py::class_<PyBacking>(module, "Backing")
      .def(py::init(&make_backing), py::arg("writer"), py::arg("log"), py::kw_only(), py::arg("queue_blocks"))
      .def(
          "spill",
          [](const PyBacking &b, const std::vector<Name> &blocks) {
            Names names(blocks);
            call([&] { return gft_backing_spill(b.handle.get(), names.views.data(), names.views.size()); });
          },
          py::arg("blocks"))
      .def(
          "fetch",
          [](const PyBacking &b, int64_t job_id, const std::vector<Name> &blocks, double seconds) {
            Names names(blocks);
            call([&] { return gft_backing_fetch(b.handle.get(), job_id, names.views.data(), names.views.size(), seconds); });
          },
          py::arg("job_id"), py::arg("blocks"), py::arg("seconds"))
      .def(
          "cancel",
          [](const PyBacking &b, const std::vector<int64_t> &job_ids) {
            call([&] { return gft_backing_cancel(b.handle.get(), job_ids.data(), job_ids.size()); });
          },
          py::arg("job_ids"))
      .def("poll", poll)
      .def("wait", wait, py::arg("timeout"))
      .def("stats", stats)
      .def("trouble", trouble)
      .def(
          "close",
          [](const PyBacking &b, double timeout) {
            int done = 0;
            call([&] { return gft_backing_close(b.handle.get(), timeout, &done); });
            return done != 0;
          },
          py::arg("timeout") = 5.0);
}

}  // namespace bind
