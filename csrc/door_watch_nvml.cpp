// The door's NVML watcher: translates between gft_watch.h and watch/nvml_watcher.h.
// One short body per function; the promises are in the header.
#include "door.h"
#include "door_watch.h"
#include "watch/nvml_watcher.h"

using gft::behind_wall;
using namespace gft::watch;

struct gft_nvml_watcher {
  std::unique_ptr<NvmlWatcher> watcher;
};

namespace {
gft_bytes bytes(const std::string &text) { return {reinterpret_cast<const uint8_t *>(text.data()), text.size()}; }
}  // namespace

gft_status gft_nvml_watcher_create(gft_watch_queue *queue, const gft_nvml_options *options, gft_nvml_watcher **out) {
  return behind_wall([&] {
    NvmlOptions wish;
    wish.library = options->library;
    wish.every = options->gpus == nullptr;
    for (size_t i = 0; !wish.every && i < options->gpu_count; ++i) wish.gpus.emplace_back(gft::view(options->gpus[i]));
    wish.poll_s = options->poll_s;
    wish.call_deadline_s = options->call_deadline_s;
    *out = new gft_nvml_watcher{std::make_unique<NvmlWatcher>(queue->queue, wish)};
  });
}

void gft_nvml_watcher_free(gft_nvml_watcher *watcher) { delete watcher; }

gft_status gft_nvml_watcher_start(gft_nvml_watcher *watcher) {
  return behind_wall([&] { watcher->watcher->start(); });
}

gft_status gft_nvml_watcher_stop(gft_nvml_watcher *watcher, double seconds, int *ended) {
  return behind_wall([&] { *ended = watcher->watcher->stop(seconds); });
}

gft_status gft_nvml_watcher_gpus(gft_nvml_watcher *watcher, void (*each)(void *, const gft_nvml_gpu *), void *context) {
  return behind_wall([&] {
    for (const WatchedGpu &gpu : watcher->watcher->gpus()) {
      const gft_nvml_gpu told = {gpu.index,      bytes(gpu.uuid), bytes(gpu.bdf), bytes(gpu.name), gpu.supported,
                                 gpu.registered, gpu.responsive,  gpu.avoided,    gpu.lost(),      gpu.action};
      each(context, &told);
    }
  });
}

gft_status gft_nvml_watcher_about(gft_nvml_watcher *watcher, void (*each)(void *, const char *, const char *),
                                  void *context) {
  return behind_wall([&] {
    each(context, "driver", watcher->watcher->driver().c_str());
    each(context, "library", watcher->watcher->library().path.c_str());
  });
}

gft_status gft_nvml_watcher_counts(gft_nvml_watcher *watcher, void (*each)(void *, const char *, uint64_t), void *context) {
  return behind_wall([&] {
    const Counts counts = watcher->watcher->counts();
    each(context, "events", counts.events);
    each(context, "spurious_xids", counts.spurious_xids);
    each(context, "event_errors", counts.event_errors);
    each(context, "sets", counts.sets);
    each(context, "polls", counts.polls);
    each(context, "stuck_calls", counts.stuck_calls);
    each(context, "event_threads", counts.event_threads);
  });
}

gft_status gft_nvml_watcher_avoid(gft_nvml_watcher *watcher, int index, int *known) {
  return behind_wall([&] { *known = watcher->watcher->avoid(index); });
}
