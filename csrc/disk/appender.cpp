// The pipeline of groups. While one group is synced, the next ones are written: a sync covers what was complete when it began,
// records of one group and the commit page of another alike.
#include "appender.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace gft::disk {
namespace {
constexpr size_t kBusy = 4;  // so many transfers keep a disk busy: what is small may then wait for what follows it
constexpr auto kTick = std::chrono::milliseconds(1);  // how late new work is seen while operations are in flight
}  // namespace

void Appender::run() {
  while (true) {
    while (Op *op = io_->take(Clock::now())) finished(op);
    bool moved = admit();
    if (!groups_.empty() && groups_.back()->step == Step::filling && due()) close_group();
    start_sync();
    settle_done();
    if (moved) continue;
    {
      Log::Inside::Lock lock(in_.mutex);
      if (in_.stop && in_.queue.empty() && groups_.empty()) break;
    }
    wait();
  }
  leave_target();
  Log::Inside::Lock lock(in_.mutex);
  for (const PendingRef &record : in_.background) in_.settle(record, GFT_CANCELLED);
  in_.background.clear();
  in_.appender_done = true;
  in_.chores.notify_all();
}

bool Appender::due() const {
  const Group &group = *groups_.back();
  Log::Inside::Lock lock(in_.mutex);
  if ((in_.waiting_flushes || in_.stop) && in_.queue.empty()) return true;
  return Clock::now() >= group.opened + std::chrono::milliseconds(in_.options.window_ms);
}

void Appender::wait() {
  auto now = Clock::now();
  if (io_->in_flight()) {
    if (Op *op = io_->take(now + kTick)) finished(op);
    return;
  }
  Log::Inside::Lock lock(in_.mutex);
  auto until = now + std::chrono::milliseconds(200);
  if (!groups_.empty() && groups_.back()->step == Step::filling)
    until = std::min(until, groups_.back()->opened + std::chrono::milliseconds(in_.options.window_ms));
  bool wanted = (!in_.queue.empty() || !in_.background.empty()) && (in_.spare || in_.refusal.status);
  if (wanted || in_.stop || (in_.waiting_flushes && !groups_.empty())) return;
  in_.work.wait_until(lock, until);
}

bool Appender::admit() {
  bool any = false;
  refuse_queued();
  while (io_->in_flight() < in_.options.depth) {
    PendingRef record;
    {
      Log::Inside::Lock lock(in_.mutex);
      auto &from = in_.queue.empty() ? in_.background : in_.queue;
      if (from.empty()) break;
      record = from.front();
    }
    if (!place(record)) break;
    any = true;
    Log::Inside::Lock lock(in_.mutex);
    // Nobody but this thread takes records away, so the front of its queue is still the same.
    auto &from = !in_.queue.empty() && in_.queue.front() == record ? in_.queue : in_.background;
    from.pop_front();
  }
  if (open_ && (io_->in_flight() < kBusy || open_->bytes > kLargestPiece / 2)) push_open();
  return any;
}

void Appender::refuse_queued() {
  Log::Inside::Lock lock(in_.mutex);
  if (in_.cancel_moves) {
    for (const PendingRef &record : in_.background) in_.settle(record, GFT_CANCELLED);
    in_.background.clear();
    in_.cancel_moves = false;
  }
  if (!in_.refusal.status) return;
  for (auto *queue : {&in_.queue, &in_.background}) {
    for (const PendingRef &record : *queue) in_.settle(record, in_.refusal.status);
    queue->clear();
  }
}

bool Appender::place(const PendingRef &record) {
  const Id &name = record->entry.key.name_space;
  uint64_t need = record->bytes() + kPage;
  bool fits = target_ && target_->file->header.segment_bytes - tail_ >= need + (named_.contains(name) ? 0 : 3 * kPage);
  if (!fits && !next_segment()) return false;
  if (!named_.contains(name)) {
    auto first = std::make_shared<Pending>();
    std::string text;
    {
      Log::Inside::Lock lock(in_.mutex);
      text = in_.namespaces.at(name);
    }
    first->kind = Kind::name_space;
    first->entry.key.name_space = first->entry.key.digest = name;
    first->entry.key.payload_bytes = first->entry.stored_bytes = text.size();
    first->buffer = pages_->take(first->bytes(), Clock::now());
    std::memset(first->buffer.data(), 0, first->bytes());
    std::memcpy(first->buffer.data() + kPage, text.data(), text.size());
    build_record(Kind::name_space, Codec::none, first->entry.key, first->buffer.data() + kPage, text.size(), *in_.digest,
                 first->buffer.data());
    put(first);
    named_.insert(name);
  }
  put(record);
  return true;
}

bool Appender::next_segment() {
  close_group();
  leave_target();
  Log::Inside::Lock lock(in_.mutex);
  if (!in_.spare) {
    if (in_.spare_trouble.status) in_.refuse(in_.spare_trouble.status, in_.spare_trouble.text, in_.spare_trouble.for_good);
    in_.chores.notify_all();
    return false;
  }
  target_ = std::make_shared<Target>();
  target_->file = std::move(in_.spare);
  in_.spare = nullptr;
  in_.chores.notify_all();
  tail_ = kPage;
  sequence_ = 0;
  previous_ = target_->file->header.crc;
  named_.clear();
  return true;
}

void Appender::leave_target() {
  if (!target_) return;
  target_->left = true;
  if (target_->groups == 0) {
    Log::Inside::Lock lock(in_.mutex);
    in_.left.emplace_back(target_->file->number, target_->committed);
    in_.chores.notify_all();
  }
  target_ = nullptr;
}

void Appender::put(const PendingRef &record) {
  if (groups_.empty() || groups_.back()->step != Step::filling) {
    groups_.push_back(std::make_unique<Group>());
    groups_.back()->target = target_;
    groups_.back()->commit.from = tail_;
    ++target_->groups;
  }
  Group &group = *groups_.back();
  const SegmentFile &file = *target_->file;
  record->entry.segment = file.number;
  record->entry.offset = tail_;
  uint32_t crc = place_record({in_.log, file.number, tail_, file.header.segment_bytes}, record->buffer.data());
  write(group, record->buffer.data(), record->bytes(), tail_);
  group.commit.records.push_back({tail_, crc});
  group.records.push_back(record);
  group.bytes += record->bytes();
  tail_ += record->bytes();
  // Room for one namespace record more, so that a record and its namespace are always of one group.
  if (group.bytes >= in_.options.group_bytes || group.records.size() >= kGroupRecords - 1) close_group();
}

// The last operation stays open for what follows it in memory and on the disk alike; push_open ends that.
void Appender::write(Group &group, uint8_t *data, uint64_t bytes, uint64_t offset) {
  uint64_t group_id = reinterpret_cast<uint64_t>(&group);
  if (open_ && open_->owner == group_id && open_->data + open_->bytes == data && open_->offset + open_->bytes == offset &&
      open_->bytes + bytes <= kLargestPiece) {
    open_->bytes += bytes;
    return;
  }
  for (uint64_t at = 0, piece = piece_of(bytes); at < bytes; at += piece) {
    push_open();
    auto op = std::make_unique<Op>();
    op->kind = Fault::Kind::write;
    op->descriptor = group.target->file->descriptor();
    op->data = data + at;
    op->bytes = std::min(piece, bytes - at);
    op->offset = offset + at;
    op->owner = group_id;
    ++group.in_flight;
    open_ = op.get();
    group.ops.push_back(std::move(op));
  }
}

void Appender::push_open() {
  if (open_) io_->push(std::exchange(open_, nullptr));
}

void Appender::close_group() {
  if (groups_.empty() || groups_.back()->step != Step::filling) return;
  push_open();
  Group &group = *groups_.back();
  group.page = pages_->take(kPage, Clock::now());
  group.commit.sequence = sequence_++;
  group.commit.previous = previous_;
  group.offset = tail_;
  const SegmentFile &file = *group.target->file;
  build_commit({in_.log, file.number, tail_, file.header.segment_bytes}, group.commit, group.page.data());
  previous_ = reinterpret_cast<const CommitPage *>(group.page.data())->crc;
  tail_ += kPage;
  group.step = group.in_flight ? Step::writing : Step::written;
}

void Appender::finished(Op *op) {
  if (op->error) {
    std::string path = in_.folder.path_of(segment_name(op->owner ? reinterpret_cast<Group *>(op->owner)->target->file->number : 0));
    gft_status status = status_of(op->error) == GFT_NO_SPACE ? GFT_NO_SPACE : GFT_IO;
    std::string text = std::string("cannot ") + (op->kind == Fault::Kind::sync ? "sync " : "write ") + path + ": " +
                       std::strerror(op->error) +
                       (status == GFT_NO_SPACE
                            ? "; blocks are not stored on disk for now: free room, or raise the limit on file sizes (ulimit -f)"
                            : "; blocks are not stored on disk any more: see to the disk and open again");
    if (op == &sync_) syncing_ = false;
    collapse(status, text);
    return;
  }
  if (op == &sync_) {
    syncing_ = false;
    for (auto &group : groups_) {
      if (group->step == Step::finishing) group->step = Step::done;
      if (group->step != Step::syncing) continue;
      group->step = Step::committing;
      group->ops.clear();
      write(*group, group->page.data(), kPage, group->offset);
      push_open();
    }
    return;
  }
  Group &group = *reinterpret_cast<Group *>(op->owner);
  if (--group.in_flight) return;
  // What was written is never written again, so its memory need not wait for the syncs: they may take longer than the writes.
  for (size_t &i = group.written; i < group.records.size(); ++i) group.records[i]->buffer = Buffer();
  if (group.step == Step::writing) group.step = Step::written;
  if (group.step == Step::committing) group.step = Step::committed;
}

void Appender::start_sync() {
  if (syncing_) return;
  const Target *target = nullptr;
  for (auto &group : groups_) {
    if (group->step != Step::written && group->step != Step::committed) continue;
    if (target && group->target.get() != target) continue;
    target = group->target.get();
    group->step = group->step == Step::written ? Step::syncing : Step::finishing;
    sync_ = {};
    sync_.kind = Fault::Kind::sync;
    sync_.descriptor = target->file->descriptor();
    sync_.owner = reinterpret_cast<uint64_t>(group.get());
  }
  if (!target) return;
  syncing_ = true;
  io_->push(&sync_);
}

void Appender::settle_done() {
  while (!groups_.empty() && groups_.front()->step == Step::done) {
    if (in_.lease->fenced()) {
      collapse(GFT_FENCED, "another process took over the disk log " + in_.folder.path + "; this one stops writing to it");
      return;
    }
    auto group = std::move(groups_.front());
    groups_.pop_front();
    report(*group);
  }
}

void Appender::report(Group &group) {
  Log::Inside::Lock lock(in_.mutex);
  SegmentState &state = in_.segments[group.target->file->number];
  for (const PendingRef &record : group.records) {
    if (record->kind == Kind::name_space) state.named.insert(record->entry.key.name_space);
    in_.settle(record, GFT_OK);
  }
  group.target->committed = group.offset + kPage;
  if (--group.target->groups == 0 && group.target->left) {
    in_.left.emplace_back(group.target->file->number, group.target->committed);
    in_.chores.notify_all();
  }
  ++in_.counts.commits;
  in_.refusal.pause = {};
  ++in_.pulse.commits;
  in_.lease->beat(in_.pulse);
}

void Appender::collapse(gft_status status, const std::string &text) {
  open_ = nullptr;  // goes with its group
  // Memory under way must not be touched before the kernel is done with it.
  while (io_->in_flight())
    if (Op *op = io_->take(Clock::now() + std::chrono::seconds(1)); op == &sync_) syncing_ = false;
  syncing_ = false;
  auto failed = std::move(groups_);
  groups_.clear();
  std::set<Target *> gone;
  {
    Log::Inside::Lock lock(in_.mutex);
    in_.fenced = in_.fenced || status == GFT_FENCED;
    in_.refuse(status, text, status != GFT_NO_SPACE);
    for (auto &group : failed) {
      for (const PendingRef &record : group->records) in_.settle(record, status);
      // Segments left earlier, whose last groups fail here.
      if (group->target != target_ && gone.insert(group->target.get()).second)
        in_.left.emplace_back(group->target->file->number, group->target->committed);
    }
  }
  if (target_) target_->groups = 0;
  leave_target();  // what a failed sync leaves on the disk nobody knows: this segment is not written again
}

}  // namespace gft::disk
