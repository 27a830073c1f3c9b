// The door's queue of records: translates between gft_watch.h and watch/queue.h.
// One short body per function; the promises are in the header.
#include "door_watch.h"

#include "door.h"

using gft::behind_wall;
using namespace gft::watch;

namespace {

gft_bytes bytes(const std::string &text) { return {reinterpret_cast<const uint8_t *>(text.data()), text.size()}; }

}  // namespace

void gft::watch::tell(gft_watch_callback each, void *context, const Record &record) {
  std::vector<gft_watch_fact> facts;
  facts.reserve(record.facts.size());
  for (const auto &[name, value] : record.facts) facts.push_back({name, bytes(value)});
  gft_watch_record told = {record.source,      record.what,  record.at_ns, record.last_ns,     record.count,
                           record.serial,      record.code,  record.pid,   record.index,       record.gi,
                           record.ci,          {nullptr, 0}, {nullptr, 0}, {nullptr, 0},       facts.data(),
                           record.facts.size()};
  told.bdf = bytes(record.bdf);
  told.uuid = bytes(record.uuid);
  told.text = bytes(record.text);
  each(context, &told);
}

gft_status gft_watch_queue_create(size_t capacity, gft_watch_callback on_record, void *context, gft_watch_queue **out) {
  return behind_wall([&] {
    std::function<void(const Record &)> heard;
    if (on_record) heard = [on_record, context](const Record &record) { tell(on_record, context, record); };
    *out = new gft_watch_queue{std::make_shared<Queue>(capacity, std::move(heard))};
  });
}

void gft_watch_queue_free(gft_watch_queue *queue) { delete queue; }

gft_status gft_watch_queue_take(gft_watch_queue *queue, size_t limit, gft_watch_callback each, void *context) {
  return behind_wall([&] {
    for (const Record &record : queue->queue->take(limit)) tell(each, context, record);
  });
}

gft_status gft_watch_queue_wait(gft_watch_queue *queue, double seconds, int *ready) {
  return behind_wall([&] { *ready = queue->queue->wait(seconds); });
}

int gft_watch_queue_descriptor(gft_watch_queue *queue) { return queue->queue->descriptor(); }

uint64_t gft_watch_queue_lost(gft_watch_queue *queue) { return queue->queue->lost(); }
