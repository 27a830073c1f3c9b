// The door's device half: opening devices, their copy engines, and the twin's controls.
// One short body per function of gft_device.h; the promises are there.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "copy/device_mover.h"
#include "copy/measure.h"
#include "device/mix.h"
#include "device/twin.h"
#include "door.h"
#include "gft_device.h"

using gft::behind_wall;
using gft::fail;

struct gft_device {
  std::shared_ptr<gft::device::Device> device;
  gft::device::Twin *twin = nullptr;
};

namespace {

gft::device::Twin &twin_of(gft_device *device) {
  if (!device->twin) fail(GFT_INVALID, "%s is not simulated; its twin's controls are for tests", device->device->name.c_str());
  return *device->twin;
}

uint8_t *bytes_at(gft::device::Twin &twin, uint64_t address, uint64_t bytes) {
  uint8_t *found = twin.resolve(address, bytes);
  if (!found)
    fail(GFT_INVALID, "address %#llx with %llu bytes is not inside one allocation of the simulated device",
         (unsigned long long)address, (unsigned long long)bytes);
  return found;
}

gft::device::TwinStream *stream_of(uint64_t stream) { return reinterpret_cast<gft::device::TwinStream *>(stream); }

std::vector<gft::Threshold> thresholds(const gft_threshold *rows, size_t count) {
  std::vector<gft::Threshold> out;
  for (size_t i = 0; i < count; ++i) {
    if (i && rows[i].count <= rows[i - 1].count)
      fail(GFT_INVALID, "thresholds must be given by ascending counts; row %zu has %llu", i, (unsigned long long)rows[i].count);
    out.push_back({rows[i].count, rows[i].below});
  }
  return out;
}

}  // namespace

gft_status gft_device_probe(char *text, size_t size) {
  return behind_wall([&] {
    const auto &driver = gft::device::cuda_driver();
    std::snprintf(text, size, "%s: batched copies %s, kernels %s", driver.name.c_str(),
                  driver.batches() ? "yes" : "no (CUDA 12.8)", driver.kernels() ? "yes" : "no");
  });
}

gft_status gft_device_open(int ordinal, double timeout, gft_device **out) {
  return behind_wall(
      [&] { *out = new gft_device{gft::device::Device::open(gft::device::cuda_driver(), ordinal, timeout), nullptr}; });
}

gft_status gft_twin_make(const gft_twin_options *options, double timeout, gft_device **out) {
  return behind_wall([&] {
    auto &twin = gft::device::Twin::make(*options);
    auto device = gft::device::Device::open(gft::device::twin_driver(), twin.ordinal, timeout);
    *out = new gft_device{std::move(device), &twin};
  });
}

void gft_device_free(gft_device *device) { delete device; }

gft_status gft_device_facts(gft_device *device, void (*each)(void *, const char *, const char *), void *context) {
  return behind_wall([&] {
    const auto &d = *device->device;
    auto say = [&](const char *name, const std::string &value) { each(context, name, value.c_str()); };
    say("name", d.name);
    say("driver", d.driver.name);
    say("uuid", d.uuid);
    say("compute", std::to_string(d.major) + "." + std::to_string(d.minor));
    say("simulated", d.driver.simulated ? "yes" : "no");
    say("batch", d.batches() ? "yes" : "no");
    say("kernels", d.has_kernels() ? "yes" : "no");
    say("node", std::to_string(d.node));
    say("lost", d.lost() ? "yes" : "no");
  });
}

gft_status gft_device_use_kernels(gft_device *device, const char *const *images, const size_t *sizes, size_t count) {
  return behind_wall([&] {
    std::vector<std::string> all;
    for (size_t i = 0; i < count; ++i) all.emplace_back(images[i], sizes[i]);
    device->device->use_kernels(all);
  });
}

gft_status gft_device_measure(gft_device *device, const char *way, int in, uint64_t bytes, uint64_t count, double *seconds) {
  return behind_wall([&] { *seconds = gft::measure(device->device, way, in != 0, bytes, count, 4); });
}

gft_status gft_device_engine_create(gft_writer *writer, gft_device *device, const gft_region *regions, size_t count,
                                    const gft_device_options *options, gft_engine **out) {
  return behind_wall([&] {
    gft::DeviceRules rules;
    rules.threads = std::clamp(options->threads, 1, 64);
    rules.staging_bytes = options->staging_bytes;
    rules.chunk_bytes = options->chunk_bytes;
    rules.thread_blocks = options->thread_blocks < 0 ? 0 : static_cast<unsigned>(options->thread_blocks);
    rules.digest = options->device_digest != 0;
    rules.out = thresholds(options->out, options->out_count);
    rules.in = thresholds(options->in, options->in_count);
    auto make = [&](const std::shared_ptr<gft::Writer> &by, const gft::Layout &layout) -> std::shared_ptr<gft::Mover> {
      return std::make_shared<gft::DeviceMover>(device->device, by, layout, rules);
    };
    gft::PaceRules pace{static_cast<double>(options->rate), options->slowdown};
    *out = new gft_engine{
        gft::Engine::start(writer->writer, gft::Layout::of(regions, count), options->threads, make, pace)};
  });
}

gft_status gft_engine_submit_after(gft_engine *engine, int load, int64_t job_id, const gft_block *blocks, size_t count,
                                   uint64_t stream) {
  return behind_wall([&] { engine->engine->submit(load != 0, job_id, gft::specs(blocks, count), stream); });
}

gft_status gft_engine_step(gft_engine *engine, double seconds) {
  return behind_wall([&] { engine->engine->step(seconds); });
}

gft_status gft_engine_facts(gft_engine *engine, void (*each)(void *, const char *, double), void *context) {
  return behind_wall([&] {
    for (const auto &[name, value] : engine->engine->facts()) each(context, name.c_str(), value);
  });
}

gft_status gft_twin_set(gft_device *device, const gft_twin_options *options) {
  return behind_wall([&] { twin_of(device).set(*options); });
}

gft_status gft_twin_calls(gft_device *device, uint64_t *calls, uint64_t *registered_bytes) {
  return behind_wall([&] { *calls = twin_of(device).calls(), *registered_bytes = twin_of(device).registered_bytes(); });
}

gft_status gft_twin_allocate(gft_device *device, uint64_t bytes, uint64_t *address) {
  return behind_wall([&] {
    if (twin_of(device).allocate(address, bytes)) fail(GFT_INVALID, "a simulated device has no allocations of zero bytes");
  });
}

gft_status gft_twin_adopt(gft_device *device, uint64_t address, uint64_t bytes) {
  return behind_wall([&] { twin_of(device).adopt(address, bytes); });
}

gft_status gft_twin_stream(gft_device *device, uint64_t *stream) {
  return behind_wall([&] { *stream = reinterpret_cast<uint64_t>(twin_of(device).stream()); });
}

gft_status gft_twin_write(gft_device *device, uint64_t address, gft_bytes data) {
  return behind_wall([&] { std::memcpy(bytes_at(twin_of(device), address, data.size), data.data, data.size); });
}

gft_status gft_twin_read(gft_device *device, uint64_t address, uint8_t *out, uint64_t bytes) {
  return behind_wall([&] { std::memcpy(out, bytes_at(twin_of(device), address, bytes), bytes); });
}

gft_status gft_twin_fill(gft_device *device, uint64_t stream, uint64_t address, uint64_t bytes, int value, double seconds) {
  return behind_wall([&] {
    uint8_t *to = bytes_at(twin_of(device), address, bytes);
    twin_of(device).enqueue(stream_of(stream), seconds, [=] { std::memset(to, value, bytes); });
  });
}

gft_status gft_twin_copy(gft_device *device, uint64_t stream, uint64_t to, uint64_t from, uint64_t bytes, double seconds) {
  return behind_wall([&] {
    uint8_t *target = bytes_at(twin_of(device), to, bytes), *source = bytes_at(twin_of(device), from, bytes);
    twin_of(device).enqueue(stream_of(stream), seconds, [=] { std::memmove(target, source, bytes); });
  });
}

gft_status gft_twin_launch(gft_device *device, const char *kernel, const uint64_t *pieces, size_t count, uint64_t staging,
                           uint64_t staging_bytes, int digest, uint64_t *error, uint64_t *digests) {
  return behind_wall([&] {
    using namespace gft::device;
    Twin &twin = twin_of(device);
    TwinKernel found = twin_kernel(kernel);
    if (!found) fail(GFT_NOT_FOUND, "no kernel is named \"%s\"; there are %s and %s", kernel, kGather, kScatter);
    Address table = 0, results = 0;
    twin.allocate(&table, std::max<size_t>(count, 1) * sizeof(PackedPiece));
    twin.allocate(&results, sizeof(KernelResults));
    auto *rows = reinterpret_cast<PackedPiece *>(twin.resolve(table, count * sizeof(PackedPiece)));
    for (size_t i = 0; i < count; ++i, pieces += 5)
      rows[i] = {pieces[0], pieces[1], pieces[2], pieces[3], static_cast<uint32_t>(pieces[4]), 0};
    auto *said = new (twin.resolve(results, sizeof(KernelResults))) KernelResults{};
    uint32_t number = static_cast<uint32_t>(count), with_digest = digest != 0;
    void *parameters[] = {&table, &number, &staging, &staging_bytes, &results, &with_digest};
    found(twin, parameters);
    *error = said->error;
    std::memcpy(digests, said->digest, sizeof said->digest);
    twin.free(table);
    twin.free(results);
  });
}

gft_status gft_device_plan(const gft_fragment *fragments, size_t count, const gft_plan_rules *rules,
                           void (*each)(void *, int, uint64_t, const uint64_t *), void *context) {
  return behind_wall([&] {
    std::vector<gft::Fragment> all;
    for (size_t i = 0; i < count; ++i)
      all.push_back({fragments[i].device, fragments[i].host, fragments[i].bytes, static_cast<uint32_t>(fragments[i].owner),
                     fragments[i].position});
    gft::PlanRules use;
    use.kernels = rules->kernels != 0, use.pack_all = rules->pack_all != 0;
    use.pack = thresholds(rules->pack, rules->pack_count);
    use.staging_bytes = rules->staging_bytes, use.max_pieces = rules->max_pieces;
    use.host_base = rules->host_base, use.host_chunk = rules->host_chunk;
    gft::Plan plan = gft::make_plan(std::move(all), use);
    auto say = [&](int way, uint64_t round, std::array<uint64_t, 5> values) { each(context, way, round, values.data()); };
    for (const auto &d : plan.direct) say(0, 0, {d.device, d.host, d.bytes});
    for (size_t r = 0; r < plan.rounds.size(); ++r) {
      for (const auto &p : plan.rounds[r].pieces) say(1, r, {p.device, p.offset, p.bytes, p.owner, p.position});
      for (const auto &run : plan.rounds[r].runs) say(2, r, {run.offset, run.host, run.bytes});
    }
  });
}

gft_status gft_device_pace(double rate, double slowdown, const double (*events)[3], size_t count, double (*out)[2]) {
  return behind_wall([&] {
    gft::Pace pace({rate, slowdown});
    for (size_t i = 0; i < count; ++i) {
      const auto &[now, kind, value] = events[i];
      if (kind == 0) pace.step(now, value);
      if (kind == 1) pace.spend(now, static_cast<uint64_t>(value));
      out[i][0] = pace.wait(now);
      out[i][1] = pace.rate();
    }
  });
}

uint64_t gft_device_mix(const void *data, size_t bytes, uint64_t first) {
  return gft::device::mix(static_cast<const uint8_t *>(data), bytes, first);
}
