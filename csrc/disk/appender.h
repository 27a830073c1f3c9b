// The thread that writes: gives records their places, writes many at once, and commits them group by group.
// Order within a group: records, sync, commit page, sync, report. Groups overlap; they are reported in order.
#pragma once

#include "inside.h"

namespace gft::disk {

class Appender {
 public:
  explicit Appender(Log::Inside &inside) : in_(inside), io_(inside.io->queue()) {}
  void run();

 private:
  // The segment being written, and what of it counts.
  struct Target {
    SegmentRef file;
    uint64_t committed = kPage;
    size_t groups = 0;
    bool left = false;
  };
  enum class Step { filling, writing, written, syncing, committing, committed, finishing, done };
  struct Group {
    std::shared_ptr<Target> target;
    Step step = Step::filling;
    Commit commit{};
    uint64_t offset = 0;  // of the commit page
    Buffer page;
    std::vector<PendingRef> records;
    std::vector<std::unique_ptr<Op>> ops;
    size_t in_flight = 0, written = 0;  // operations; records whose memory was given back
    uint64_t bytes = 0;
    Clock::time_point opened = Clock::now();
  };

  bool admit();
  bool place(const PendingRef &record);
  void put(const PendingRef &record);
  bool next_segment();
  void leave_target();
  void close_group();
  void write(Group &group, uint8_t *data, uint64_t bytes, uint64_t offset);
  void push_open();
  void finished(Op *op);
  void start_sync();
  void settle_done();
  void report(Group &group);
  void collapse(gft_status status, const std::string &text);
  void refuse_queued();
  bool due() const;
  void wait();

  Log::Inside &in_;
  std::unique_ptr<Queue> io_;
  std::shared_ptr<Target> target_;
  uint64_t tail_ = 0, sequence_ = 0;
  uint32_t previous_ = 0;
  std::set<Id> named_;
  std::deque<std::unique_ptr<Group>> groups_;  // the last one may be filling
  Op *open_ = nullptr;  // made, not yet pushed: of the group that is filling, or of a commit within `finished`
  Op sync_;
  bool syncing_ = false;
  std::shared_ptr<Buffers> pages_ = std::make_shared<Buffers>(Buffers::kUnlimited);
};

}  // namespace gft::disk
