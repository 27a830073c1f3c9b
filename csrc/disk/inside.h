// Everything one open log shares between its callers and its two threads, behind one mutex. A writer never holds it
// over disk I/O; a reader does while it follows the writer, because its caller waits for that anyway.
// The appender (appender.h) writes groups; the keeper (keeper.h) makes and removes segments.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "../support/fail.h"
#include "buffers.h"
#include "index.h"
#include "io.h"
#include "lease.h"
#include "scan.h"

namespace gft::disk {

// A batch of records that the keeper gives new places.
struct Move {
  size_t waiting = 0;
  bool failed = false;
};

// A record on its way to the disk: header page and stored bytes in one buffer.
struct Pending {
  Buffer buffer;
  Kind kind = Kind::block;
  Entry entry;  // place and stored bytes included, once it has a place
  std::vector<uint64_t> tickets;
  std::shared_ptr<Move> move;  // null: a caller's append
  Entry from;                  // of a move
  uint64_t stamp = 0;
  bool tried = false;
  uint64_t bytes() const { return record_bytes(entry.stored_bytes); }
};
using PendingRef = std::shared_ptr<Pending>;

struct SegmentState {
  uint64_t limit = 0;  // 0: still growing
  uint64_t flags = 0;
  uint64_t file_bytes = 0;
  bool summarised = false;  // its summary says what the index says
  Walk walk;                // reader: how far it was followed
  std::set<Id> named;       // namespaces written in it
};

// Why appends end, and when another attempt is worth it.
struct Refusal {
  gft_status status = GFT_OK;
  std::string text;
  bool for_good = false;
  Clock::time_point retry{};
  std::chrono::milliseconds pause{0};
};

struct Log::Inside : std::enable_shared_from_this<Log::Inside> {
  using Lock = std::unique_lock<std::mutex>;

  Inside(const std::string &path, const Options &options, bool read_only);
  void open_writer();
  void open_reader();
  void start_threads();
  void check() const;  // throws GFT_FORKED, GFT_CLOSED
  bool forked() const;

  // recover.cpp. Reads what `super` names into index, segments and namespaces; false when a segment was not there or not readable.
  // `mine`: afterwards nothing grows any more.
  bool load(const Super &super, bool mine);
  void follow(Super super, const Pulse &now);  // reader: load, and again while the writer takes segments away under it
  bool load_segment(uint64_t number, SegmentState &state, bool mine);
  Super rebuilt() const;  // from the segments alone

  void remember_namespace(const std::string &record);
  void refuse(gft_status status, const std::string &text, bool for_good);  // with the lock
  uint64_t disk_bytes() const;                                            // with the lock
  Super super() const;                                                    // with the lock
  void settle(const PendingRef &record, gft_status status);               // with the lock
  void read_records(std::span<Read> reads, Clock::time_point deadline);  // read.cpp
  void drop(const Entry &entry);
  std::unique_ptr<Queue> borrow_queue();
  void give_back(std::unique_ptr<Queue> queue);

  Options options;
  const bool read_only;
  const uint64_t fork_generation;
  const Folder folder;
  const DigestAlgorithm *digest = nullptr;
  Id log{};
  std::shared_ptr<Io> io;
  SegmentFiles files;
  std::unique_ptr<Lease> lease;  // writer
  File lock_file;                // reader: where the pulse is
  std::shared_ptr<Buffers> write_buffers, move_buffers, read_buffers;
  double open_seconds = 0;
  bool unreadable = false;  // a segment could not even be looked at: nothing is tidied away

  mutable std::mutex mutex;
  std::condition_variable work, chores, progress;
  Index index;
  std::map<uint64_t, SegmentState> segments;
  std::map<Id, std::string> namespaces;
  std::deque<PendingRef> queue, background;
  std::map<Id, PendingRef> on_the_way;  // appends by link
  std::vector<Settled> settled;
  Refusal refusal, spare_trouble;
  SegmentRef spare;                                 // made ahead, named by the superblock
  std::vector<std::pair<uint64_t, uint64_t>> left;  // segments the appender is done with, and how far they count
  Pulse pulse{};
  uint64_t pending = 0, waiting_flushes = 0;
  Clock::time_point last_append = Clock::now();
  bool stop = false, closed = false, appender_done = true, fenced = false;
  bool cancel_moves = false;  // asks the appender to send background records back
  unsigned threads_alive = 0;
  Stats counts;

  std::mutex queues_mutex;
  std::vector<std::unique_ptr<Queue>> idle_queues;
};

}  // namespace gft::disk
