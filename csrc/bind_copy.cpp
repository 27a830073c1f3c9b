// Python's Layout, Block, JobResult and CopyEngine.
// Block arguments are copied by the native side before a call returns, so Python may drop them at once.
#include <algorithm>

#include "bind.h"

namespace bind {
namespace {

constexpr double kSlice = 0.1;  // seconds

struct PyJobResult {
  int64_t job_id;
  std::string kind;
  std::vector<std::string> statuses;
  uint64_t bytes;
  double seconds;
  std::string detail;
};

PyLayout make_layout(const std::vector<std::tuple<uint64_t, uint64_t, uint64_t, uint64_t>> &regions) {
  PyLayout layout;
  for (const auto &[address, stride, bytes, blocks] : regions) layout.regions.push_back({address, stride, bytes, blocks});
  check(gft_layout_measure(layout.regions.data(), layout.regions.size(), &layout.block_bytes, &layout.num_blocks));
  return layout;
}

PyEngine make_engine(const PyWriter &writer, const PyLayout &layout, int threads) {
  gft_engine *raw = nullptr;
  call([&] { return gft_engine_create(writer.handle.get(), layout.regions.data(), layout.regions.size(), threads, &raw); });
  return {owned(raw, gft_engine_free)};
}

template <gft_status (*Submit)(gft_engine *, int64_t, const gft_block *, size_t)>
void submit(const PyEngine &engine, int64_t job_id, const std::vector<const PyBlock *> &blocks) {
  auto views_ = views(blocks);
  call([&] { return Submit(engine.handle.get(), job_id, views_.data(), views_.size()); });
}

template <gft_mark Mark>
void mark(const PyEngine &engine, const py::sequence &block_hashes) {
  auto texts = bytes_of(block_hashes);
  auto hashes = views(texts);
  call([&] { return gft_engine_mark(engine.handle.get(), hashes.data(), hashes.size(), Mark); });
}

void pin(const PyEngine &engine, int64_t job_id, const py::sequence &block_hashes, uint32_t until) {
  auto texts = bytes_of(block_hashes);
  auto hashes = views(texts);
  call([&] { return gft_engine_pin(engine.handle.get(), job_id, hashes.data(), hashes.size(), until); });
}

std::vector<PyJobResult> poll(const PyEngine &engine) {
  std::vector<PyJobResult> out;
  call([&] {
    return gft_engine_poll(
        engine.handle.get(),
        [](void *context, const gft_job_result *job) {
          PyJobResult result{job->job_id, job->kind, {}, job->bytes, job->seconds, job->detail};
          for (size_t i = 0; i < job->count; ++i) result.statuses.emplace_back(gft_status_name(job->statuses[i]));
          static_cast<std::vector<PyJobResult> *>(context)->push_back(std::move(result));
        },
        &out);
  });
  return out;
}

}  // namespace

std::vector<gft_block> views(const std::vector<const PyBlock *> &blocks) {
  std::vector<gft_block> out;
  out.reserve(blocks.size());
  for (const PyBlock *block : blocks) out.push_back({block->block_id, view(block->hash), view(block->parent), block->position});
  return out;
}

void bind_copy(py::module_ &module) {
  py::class_<PyLayout>(module, "Layout")
      .def(py::init(&make_layout), py::arg("regions"))
      .def_readonly("block_bytes", &PyLayout::block_bytes)
      .def_readonly("num_blocks", &PyLayout::num_blocks);

  py::class_<PyBlock>(module, "Block")
      .def(py::init([](uint64_t block_id, const py::bytes &hash, const std::optional<py::bytes> &parent, uint64_t position) {
             return PyBlock{block_id, bytes_of(hash), bytes_of(parent), position};
           }),
           py::arg("block_id"), py::arg("block_hash"), py::arg("parent_hash"), py::arg("position"));

  py::class_<PyJobResult>(module, "JobResult")
      .def_readonly("job_id", &PyJobResult::job_id)
      .def_readonly("kind", &PyJobResult::kind)
      .def_readonly("statuses", &PyJobResult::statuses)
      .def_readonly("bytes", &PyJobResult::bytes)
      .def_readonly("seconds", &PyJobResult::seconds)
      .def_readonly("detail", &PyJobResult::detail);

  py::class_<PyEngine>(module, "CopyEngine")
      .def(py::init(&make_engine), py::arg("writer"), py::arg("layout"), py::kw_only(), py::arg("threads") = 1)
      .def("store", submit<gft_engine_store>, py::arg("job_id"), py::arg("blocks"))
      .def("load", submit<gft_engine_load>, py::arg("job_id"), py::arg("blocks"))
      .def("hold", mark<GFT_HOLD>, py::arg("block_hashes"))
      .def("release", mark<GFT_RELEASE>, py::arg("block_hashes"))
      .def("touch", mark<GFT_TOUCH>, py::arg("block_hashes"))
      .def("drop", mark<GFT_DROP>, py::arg("block_hashes"))
      .def("pin", pin, py::arg("job_id"), py::arg("block_hashes"), py::kw_only(), py::arg("until"))
      .def(
          "cancel",
          [](const PyEngine &e, const std::vector<int64_t> &job_ids) {
            call([&] { return gft_engine_cancel(e.handle.get(), job_ids.data(), job_ids.size()); });
          },
          py::arg("job_ids"))
      .def("poll", poll)
      .def(
          "wait",
          [](const PyEngine &e, double timeout) {
            // In slices, so that Ctrl-C is heard.
            for (int done = 0;; timeout -= kSlice) {
              call([&] { return gft_engine_wait(e.handle.get(), std::min(timeout, kSlice), &done); });
              if (done || !(timeout > kSlice)) return done != 0;
              if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            }
          },
          py::arg("timeout"))
      .def("backlog",
           [](const PyEngine &e) {
             uint64_t blocks = 0, bytes = 0;
             call([&] { return gft_engine_backlog(e.handle.get(), &blocks, &bytes); });
             return std::make_pair(blocks, bytes);
           })
      .def(
          "close",
          [](const PyEngine &e, double timeout) {
            int done = 0;
            call([&] { return gft_engine_close(e.handle.get(), timeout, &done); });
            return done != 0;
          },
          py::arg("timeout") = 5.0);
}

}  // namespace bind
