// The door's part for conversions between layouts: plans and converters behind status codes.
// One short body per function of gft_relayout.h; the promises are there.
#include "gft_relayout.h"

#include "door.h"
#include "door_disk.h"
#include "relayout/convert.h"

using gft::behind_wall;
using gft::parent_of;
using gft::view;

struct gft_relayout {
  std::shared_ptr<const gft::RelayoutPlan> plan;
};
struct gft_converter {
  std::shared_ptr<gft::Converter> converter;
};

gft_status gft_relayout_create(const gft_strided_copy *copies, size_t count, const uint64_t *source_bytes, size_t sources,
                               uint64_t target_bytes, gft_relayout **out) {
  return behind_wall([&] {
    *out = new gft_relayout{std::make_shared<const gft::RelayoutPlan>(
        std::span(copies, count), std::span(source_bytes, sources), target_bytes)};
  });
}

void gft_relayout_free(gft_relayout *relayout) { delete relayout; }

gft_status gft_relayout_run(gft_relayout *relayout, const uint8_t *const *sources, uint8_t *target) {
  return behind_wall([&] { relayout->plan->run(sources, target); });
}

gft_status gft_relayout_ranges(gft_relayout *relayout, size_t source,
                               void (*each)(void *context, uint64_t begin, uint64_t bytes), void *context) {
  return behind_wall([&] {
    if (source >= relayout->plan->source_bytes.size())
      gft::fail(GFT_INVALID, "source payload %zu of a relayout plan that has %zu; count from 0", source,
                relayout->plan->source_bytes.size());
    for (const gft::ByteRange &range : relayout->plan->ranges(source)) each(context, range.begin, range.bytes);
  });
}

gft_status gft_converter_create(gft_writer *writer, gft_arena *source, uint32_t name_space, uint64_t max_epoch,
                                const uint32_t *shards, size_t shard_count, gft_relayout *const *phases,
                                size_t phase_count, gft_converter **out) {
  return behind_wall([&] {
    std::vector<std::shared_ptr<const gft::RelayoutPlan>> plans;
    for (size_t i = 0; i < phase_count; ++i) plans.push_back(phases[i]->plan);
    *out = new gft_converter{std::make_shared<gft::Converter>(writer->writer,
                                                              gft::arena_source(source->core, name_space, max_epoch),
                                                              std::vector(shards, shards + shard_count), std::move(plans))};
  });
}

gft_status gft_converter_create_from_logs(gft_writer *writer, gft_disk *const *logs, const uint8_t name_space_id[16],
                                          uint64_t payload_bytes, uint64_t max_epoch, const uint32_t *shards,
                                          size_t shard_count, gft_relayout *const *phases, size_t phase_count,
                                          gft_converter **out) {
  return behind_wall([&] {
    std::vector<std::shared_ptr<const gft::RelayoutPlan>> plans;
    for (size_t i = 0; i < phase_count; ++i) plans.push_back(phases[i]->plan);
    std::vector<gft::ShardLog> opened;
    for (size_t i = 0; i < shard_count; ++i) opened.push_back({shards[i], logs[i]->log});
    gft::Id id;
    std::copy(name_space_id, name_space_id + 16, id.begin());
    *out = new gft_converter{std::make_shared<gft::Converter>(
        writer->writer, gft::log_source(std::move(opened), id, payload_bytes, max_epoch),
        std::vector(shards, shards + shard_count), std::move(plans))};
  });
}

void gft_converter_free(gft_converter *converter) { delete converter; }

gft_status gft_converter_convert(gft_converter *converter, const gft_target *targets, size_t count,
                                 gft_bytes source_parent, double seconds,
                                 void (*done)(void *context, const gft_converted *result), void *context) {
  return behind_wall([&] {
    if (!(seconds >= 0 && seconds <= 1e6))
      gft::fail(GFT_INVALID, "a conversion with a deadline of %g s; it must lie between 0 and 1000000", seconds);
    auto keep = converter->converter;
    std::vector<gft::TargetSpec> specs;
    specs.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      gft::TargetSpec spec{std::string(view(targets[i].hash)), parent_of(targets[i].parent), targets[i].position, {}};
      for (size_t k = 0; k < targets[i].source_count; ++k) spec.sources.emplace_back(view(targets[i].sources[k]));
      specs.push_back(std::move(spec));
    }
    auto parent = parent_of(source_parent);
    auto deadline = gft::Converter::Clock::now() +
                    std::chrono::duration_cast<gft::Converter::Clock::duration>(std::chrono::duration<double>(seconds));
    gft::Converted result = keep->convert(specs, parent ? &*parent : nullptr, deadline);
    gft_converted shown{result.statuses.data(), result.statuses.size(), result.bytes, result.seconds,
                        result.detail.c_str()};
    done(context, &shown);
  });
}

gft_status gft_converter_cancel(gft_converter *converter) {
  return behind_wall([&] { converter->converter->cancel(); });
}
