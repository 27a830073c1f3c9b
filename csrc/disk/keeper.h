// The thread that makes room: segments ahead of the appender, summaries behind it, garbage collection and idle compression.
// It alone writes the superblock, and does a bounded piece of work between two looks at what is most urgent.
#pragma once

#include <functional>

#include "inside.h"
#include "victims.h"

namespace gft::disk {

class Keeper {
 public:
  explicit Keeper(Log::Inside &inside) : in_(inside) {}
  void run();

 private:
  bool one_chore();
  bool make_spare();
  void add_segment();
  void serve_a_move();
  bool finish_left();
  bool summarise();
  void write_summary(uint64_t number, uint64_t limit);
  void end();
  bool collect(bool short_of_room);
  bool compress();

  std::vector<Candidate> candidates(bool with_warmth) const;
  void write_super(const std::function<void(Super &)> &change);  // durable on return; memory is the caller's
  void remove(uint64_t number);
  // Gives the entries new places; false when not all of them could be. `codec`: packed where that pays.
  bool move(const std::vector<Entry> &entries, Codec codec);
  PendingRef prepared(const Entry &entry, Codec codec);
  bool pays(const std::vector<Entry> &entries, Codec codec);
  void trouble(const Fail &cause);
  bool idle() const;

  Log::Inside &in_;
  uint64_t next_number_ = 1;
  std::unique_ptr<Queue> queue_;
  std::shared_ptr<Buffers> packing_ = std::make_shared<Buffers>(Buffers::kUnlimited);
  bool gave_up_ = false;  // collected for a full file system since the last segment was made
  Clock::time_point next_collection_{}, next_compression_{};
};

}  // namespace gft::disk
