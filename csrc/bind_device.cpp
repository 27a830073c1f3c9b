// Python's Device and DeviceEngine, and the twin's controls on a Device.
// Translation only, as in bind_copy.cpp, whose engine this one extends.
#include <array>

#include "bind.h"
#include "gft_device.h"

namespace bind {
namespace {

struct PyDevice {
  std::shared_ptr<gft_device> handle;
};

using Rows = std::vector<std::pair<uint64_t, uint64_t>>;

gft_twin_options twin_options(uint64_t seed, double gb_per_s, double call_seconds, double work_seconds, int version,
                              bool kernels, uint64_t register_bytes, int64_t fail_at, int fail_with, int64_t lose_at,
                              int64_t block_at, int64_t flip_every) {
  return {seed, gb_per_s, call_seconds, work_seconds, version, kernels, register_bytes, fail_at, fail_with, lose_at, block_at, flip_every};
}

PyDevice opened(gft_device *raw) { return {owned(raw, gft_device_free)}; }

py::dict facts(const PyDevice &device) {
  std::vector<std::pair<std::string, std::string>> found;
  call([&] {
    return gft_device_facts(
        device.handle.get(),
        [](void *context, const char *name, const char *value) {
          static_cast<decltype(found) *>(context)->emplace_back(name, value);
        },
        &found);
  });
  py::dict out;
  for (const auto &[name, value] : found) out[name.c_str()] = py::str(value);
  return out;
}

PyEngine make_engine(const PyWriter &writer, const PyDevice &device, const PyLayout &layout, int threads,
                     uint64_t staging_bytes, uint64_t chunk_bytes, int thread_blocks, bool device_digest, uint64_t rate,
                     double slowdown, const Rows &pack_out, const Rows &pack_in) {
  std::vector<gft_threshold> out, in;
  for (const auto &[count, below] : pack_out) out.push_back({count, below});
  for (const auto &[count, below] : pack_in) in.push_back({count, below});
  gft_device_options options{threads,       staging_bytes, chunk_bytes, thread_blocks, device_digest, rate,
                             slowdown,      out.data(),    in.data(),   out.size(),    in.size()};
  gft_engine *raw = nullptr;
  call([&] {
    return gft_device_engine_create(writer.handle.get(), device.handle.get(), layout.regions.data(), layout.regions.size(),
                                    &options, &raw);
  });
  return {owned(raw, gft_engine_free)};
}

template <bool kLoad>
void submit_after(const PyEngine &engine, int64_t job_id, const std::vector<const PyBlock *> &blocks, uint64_t stream) {
  auto views_ = views(blocks);
  call([&] { return gft_engine_submit_after(engine.handle.get(), kLoad, job_id, views_.data(), views_.size(), stream); });
}

py::dict engine_facts(const PyEngine &engine) {
  std::vector<std::pair<std::string, double>> found;
  call([&] {
    return gft_engine_facts(
        engine.handle.get(),
        [](void *context, const char *name, double value) {
          static_cast<decltype(found) *>(context)->emplace_back(name, value);
        },
        &found);
  });
  py::dict out;
  for (const auto &[name, value] : found) out[name.c_str()] = value;
  return out;
}

using Planned = std::vector<std::tuple<int, uint64_t, std::array<uint64_t, 5>>>;

Planned plan(const std::vector<std::array<uint64_t, 5>> &fragments, bool kernels, bool pack_all, const Rows &pack,
             uint64_t staging_bytes, uint64_t max_pieces, uint64_t host_base, uint64_t host_chunk) {
  std::vector<gft_fragment> all;
  for (const auto &[device, host, bytes, owner, position] : fragments) all.push_back({device, host, bytes, owner, position});
  std::vector<gft_threshold> rows;
  for (const auto &[count, below] : pack) rows.push_back({count, below});
  gft_plan_rules rules{kernels, pack_all, rows.data(), rows.size(), staging_bytes, max_pieces, host_base, host_chunk};
  Planned out;
  call([&] {
    return gft_device_plan(
        all.data(), all.size(), &rules,
        [](void *context, int way, uint64_t round, const uint64_t values[5]) {
          static_cast<Planned *>(context)->push_back({way, round, {values[0], values[1], values[2], values[3], values[4]}});
        },
        &out);
  });
  return out;
}

template <typename Class>
void bind_twin(Class &device) {
  device
      .def_static(
          "twin",
          [](uint64_t seed, double gb_per_s, double call_seconds, double work_seconds, int version, bool kernels,
             uint64_t register_bytes, double timeout) {
            auto options = twin_options(seed, gb_per_s, call_seconds, work_seconds, version, kernels, register_bytes, 0, 0, 0, 0, 0);
            gft_device *raw = nullptr;
            call([&] { return gft_twin_make(&options, timeout, &raw); });
            return opened(raw);
          },
          py::kw_only(), py::arg("seed") = 0, py::arg("gb_per_s") = 8.0, py::arg("call_seconds") = 0.0,
          py::arg("work_seconds") = 1e-5, py::arg("version") = 13000, py::arg("kernels") = true,
          py::arg("register_bytes") = uint64_t{1} << 50, py::arg("timeout") = 10.0)
      .def(
          "twin_set",
          [](const PyDevice &d, uint64_t seed, double gb_per_s, double call_seconds, double work_seconds, int version,
             bool kernels, uint64_t register_bytes, int64_t fail_at, int fail_with, int64_t lose_at, int64_t block_at,
             int64_t flip_every) {
            auto options = twin_options(seed, gb_per_s, call_seconds, work_seconds, version, kernels, register_bytes, fail_at,
                                        fail_with, lose_at, block_at, flip_every);
            call([&] { return gft_twin_set(d.handle.get(), &options); });
          },
          py::kw_only(), py::arg("seed") = 0, py::arg("gb_per_s") = 8.0, py::arg("call_seconds") = 0.0,
          py::arg("work_seconds") = 1e-5, py::arg("version") = 13000, py::arg("kernels") = true,
          py::arg("register_bytes") = uint64_t{1} << 50, py::arg("fail_at") = 0, py::arg("fail_with") = 0,
          py::arg("lose_at") = 0, py::arg("block_at") = 0, py::arg("flip_every") = 0)
      .def("twin_calls",
           [](const PyDevice &d) {
             uint64_t calls = 0, registered = 0;
             call([&] { return gft_twin_calls(d.handle.get(), &calls, &registered); });
             return std::make_pair(calls, registered);
           })
      .def(
          "twin_allocate",
          [](const PyDevice &d, uint64_t bytes) {
            uint64_t address = 0;
            call([&] { return gft_twin_allocate(d.handle.get(), bytes, &address); });
            return address;
          },
          py::arg("bytes"))
      .def(
          "twin_adopt",
          [](const PyDevice &d, uint64_t address, uint64_t bytes) {
            call([&] { return gft_twin_adopt(d.handle.get(), address, bytes); });
          },
          py::arg("address"), py::arg("bytes"))
      .def("twin_stream",
           [](const PyDevice &d) {
             uint64_t stream = 0;
             call([&] { return gft_twin_stream(d.handle.get(), &stream); });
             return stream;
           })
      .def(
          "twin_write",
          [](const PyDevice &d, uint64_t address, const py::bytes &data) {
            std::string text = bytes_of(data);
            call([&] { return gft_twin_write(d.handle.get(), address, view(text)); });
          },
          py::arg("address"), py::arg("data"))
      .def(
          "twin_read",
          [](const PyDevice &d, uint64_t address, uint64_t bytes) {
            std::string out(bytes, '\0');
            call([&] { return gft_twin_read(d.handle.get(), address, reinterpret_cast<uint8_t *>(out.data()), bytes); });
            return py::bytes(out);
          },
          py::arg("address"), py::arg("bytes"))
      .def(
          "twin_fill",
          [](const PyDevice &d, uint64_t stream, uint64_t address, uint64_t bytes, int value, double seconds) {
            call([&] { return gft_twin_fill(d.handle.get(), stream, address, bytes, value, seconds); });
          },
          py::arg("stream"), py::arg("address"), py::arg("bytes"), py::arg("value"), py::arg("seconds"))
      .def(
          "twin_copy",
          [](const PyDevice &d, uint64_t stream, uint64_t to, uint64_t from, uint64_t bytes, double seconds) {
            call([&] { return gft_twin_copy(d.handle.get(), stream, to, from, bytes, seconds); });
          },
          py::arg("stream"), py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("seconds"))
      .def(
          "twin_launch",
          [](const PyDevice &d, const std::string &kernel, const std::vector<std::array<uint64_t, 5>> &pieces,
             uint64_t staging, uint64_t staging_bytes, bool digest) {
            uint64_t error = 0;
            std::vector<uint64_t> digests(64);
            call([&] {
              return gft_twin_launch(d.handle.get(), kernel.c_str(), pieces.empty() ? nullptr : pieces[0].data(),
                                     pieces.size(), staging, staging_bytes, digest, &error, digests.data());
            });
            return std::make_pair(error, digests);
          },
          py::arg("kernel"), py::arg("pieces"), py::arg("staging"), py::arg("staging_bytes"), py::arg("digest"));
}

}  // namespace

void bind_device(py::module_ &module) {
  py::class_<PyDevice> device(module, "Device");
  device
      .def_static(
          "open",
          [](int ordinal, double timeout) {
            gft_device *raw = nullptr;
            call([&] { return gft_device_open(ordinal, timeout, &raw); });
            return opened(raw);
          },
          py::arg("ordinal"), py::kw_only(), py::arg("timeout") = 10.0)
      .def_static("probe",
                  [] {
                    char text[512] = "";
                    call([&] { return gft_device_probe(text, sizeof text); });
                    return std::string(text);
                  })
      .def("facts", facts)
      .def(
          "use_kernels",
          [](const PyDevice &d, const std::vector<py::bytes> &images) {
            std::vector<std::string> texts;
            for (const auto &image : images) texts.push_back(bytes_of(image));
            std::vector<const char *> data;
            std::vector<size_t> sizes;
            for (const auto &text : texts) data.push_back(text.data()), sizes.push_back(text.size());
            call([&] { return gft_device_use_kernels(d.handle.get(), data.data(), sizes.data(), data.size()); });
          },
          py::arg("images"))
      .def(
          "measure",
          [](const PyDevice &d, const std::string &way, bool in, uint64_t bytes, uint64_t count) {
            double seconds = 0;
            call([&] { return gft_device_measure(d.handle.get(), way.c_str(), in, bytes, count, &seconds); });
            return seconds;
          },
          py::arg("way"), py::kw_only(), py::arg("load"), py::arg("bytes"), py::arg("count"));
  bind_twin(device);

  py::class_<PyDeviceEngine, PyEngine>(module, "DeviceEngine")
      .def(py::init([](const PyWriter &writer, const PyDevice &device, const PyLayout &layout, int threads,
                       uint64_t staging_bytes, uint64_t chunk_bytes, int thread_blocks, bool device_digest, uint64_t rate,
                       double slowdown, const Rows &pack_out, const Rows &pack_in) {
             return PyDeviceEngine{make_engine(writer, device, layout, threads, staging_bytes, chunk_bytes, thread_blocks,
                                               device_digest, rate, slowdown, pack_out, pack_in)};
           }),
           py::arg("writer"), py::arg("device"), py::arg("layout"), py::kw_only(), py::arg("threads") = 2,
           py::arg("staging_bytes") = uint64_t{16} << 20, py::arg("chunk_bytes") = uint64_t{4} << 30,
           py::arg("thread_blocks") = 4, py::arg("device_digest") = false, py::arg("rate") = 0, py::arg("slowdown") = 0.0,
           py::arg("pack_out") = Rows{}, py::arg("pack_in") = Rows{})
      .def("store_after", submit_after<false>, py::arg("job_id"), py::arg("blocks"), py::arg("stream"))
      .def("load_after", submit_after<true>, py::arg("job_id"), py::arg("blocks"), py::arg("stream"))
      .def(
          "step", [](const PyEngine &e, double seconds) { call([&] { return gft_engine_step(e.handle.get(), seconds); }); },
          py::arg("seconds"))
      .def("facts", engine_facts);

  module.def("device_plan", plan, py::arg("fragments"), py::kw_only(), py::arg("kernels"), py::arg("pack_all"), py::arg("pack"),
             py::arg("staging_bytes"), py::arg("max_pieces"), py::arg("host_base"), py::arg("host_chunk"));
  module.def(
      "device_pace",
      [](double rate, double slowdown, const std::vector<std::array<double, 3>> &events) {
        std::vector<std::array<double, 2>> out(events.size());
        call([&] {
          return gft_device_pace(rate, slowdown, reinterpret_cast<const double(*)[3]>(events.data()), events.size(),
                                 reinterpret_cast<double(*)[2]>(out.data()));
        });
        return out;
      },
      py::arg("rate"), py::arg("slowdown"), py::arg("events"));
  module.def(
      "device_mix",
      [](const py::bytes &data, uint64_t first) {
        std::string text = bytes_of(data);
        return gft_device_mix(text.data(), text.size(), first);
      },
      py::arg("data"), py::arg("first"));
}

}  // namespace bind
