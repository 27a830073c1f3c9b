// The door's backing part: one short body per function of gft_backing.h; the promises are there.
#include "backing/backing.h"
#include "backing/walk.h"
#include "door.h"
#include "door_disk.h"
#include "gft_backing.h"

struct gft_backing {
  std::shared_ptr<gft::Backing> backing;
};

using gft::behind_wall;

namespace {

std::vector<gft::BlockName> names(const gft_name *blocks, size_t count) {
  std::vector<gft::BlockName> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i)
    out.push_back({std::string(gft::view(blocks[i].hash)), gft::parent_of(blocks[i].parent), blocks[i].position});
  return out;
}

}  // namespace

gft_status gft_backed_usable_prefix(gft_arena *arena, gft_disk *const *logs, gft_bytes record, uint64_t payload_bytes,
                                    const uint32_t *shards, size_t shard_count, const gft_bytes *hashes, size_t hash_count,
                                    uint64_t max_epoch, gft_backed_prefix *out, uint8_t *on_disk) {
  return behind_wall([&] {
    std::vector<gft::disk::Log *> opened;
    for (size_t i = 0; logs && i < shard_count; ++i) opened.push_back(logs[i] ? logs[i]->log.get() : nullptr);
    auto answer = gft::backed_prefix(arena ? arena->core.get() : nullptr, opened, gft::view(record), payload_bytes,
                                     {shards, shard_count}, gft::views(hashes, hash_count), max_epoch);
    *out = {answer.blocks, gft::why_text(answer.why), answer.shard};
    for (uint64_t i = 0; i < answer.blocks; ++i) on_disk[i] = answer.on_disk[i];
  });
}

gft_status gft_backing_create(gft_writer *writer, gft_disk *log, size_t queue_blocks, gft_backing **out) {
  return behind_wall([&] { *out = new gft_backing{gft::Backing::start(writer->writer, log->log, queue_blocks)}; });
}

gft_status gft_backing_spill(gft_backing *backing, const gft_name *blocks, size_t count) {
  return behind_wall([&] { backing->backing->spill(names(blocks, count)); });
}

gft_status gft_backing_fetch(gft_backing *backing, int64_t job_id, const gft_name *blocks, size_t count, double seconds) {
  return behind_wall([&] { backing->backing->fetch(job_id, names(blocks, count), seconds); });
}

gft_status gft_backing_cancel(gft_backing *backing, const int64_t *job_ids, size_t count) {
  return behind_wall([&] { backing->backing->cancel({job_ids, job_ids + count}); });
}

gft_status gft_backing_poll(gft_backing *backing, void (*each)(void *context, const gft_job_result *result), void *context) {
  return behind_wall([&] {
    for (const gft::Fetched &job : backing->backing->poll()) {
      gft_job_result result{job.job_id,          "fetch",           job.bytes, job.seconds, job.statuses.data(),
                            job.statuses.size(), job.detail.c_str()};
      each(context, &result);
    }
  });
}

gft_status gft_backing_wait(gft_backing *backing, double seconds, int *done) {
  return behind_wall([&] { *done = backing->backing->wait(seconds); });
}

gft_status gft_backing_stats_get(gft_backing *backing, gft_backing_stats *out, const char **trouble) {
  static thread_local std::string text;
  return behind_wall([&] {
    auto stats = backing->backing->stats();
    text = std::move(stats.trouble);
    *out = {stats.spilled_blocks,  stats.spilled_bytes, stats.spill_queue,    stats.dropped_queue,
            stats.dropped_evicted, stats.dropped_log,   stats.fetched_blocks, stats.fetched_bytes};
    *trouble = text.c_str();
  });
}

gft_status gft_backing_close(gft_backing *backing, double seconds, int *done) {
  return behind_wall([&] { *done = backing->backing->close(seconds); });
}

void gft_backing_free(gft_backing *backing) {
  if (!backing) return;
  (void)behind_wall([&] { backing->backing->close(1); });
  delete backing;
}
