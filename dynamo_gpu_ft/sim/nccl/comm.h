// One communicator in one process, with the thread that makes it and carries out what is put on it, in order.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "nccl_abi.h"
#include "segment.h"

enum Kind : uint64_t { kAllReduce = 1, kAllGather, kBroadcast, kSend, kReceive };

struct Call {
  Kind kind;
  const char *in;
  char *out;
  size_t count;
  int type, op, peer;
  size_t bytes() const { return count * kTypeBytes[type]; }
};

struct Group {
  std::vector<Call> calls;
  const void *stream;
  uint64_t ticket;
};

class Comm {
 public:
  // Begins to be made. With `parent` (whose `child` it is until then) `handle` is set once it is made, and never if the parent ends before.
  Comm(std::string id, int size, int rank);
  void begin(Comm *parent = nullptr, Comm **handle = nullptr);
  ~Comm();
  Comm(const Comm &) = delete;
  Comm &operator=(const Comm &) = delete;
  // What the handle stands for; null for one that is over, or was never given out.
  static Comm *find(void *handle);

  const std::string id;
  const int size, rank;
  int children = 0;               // that were made of this one so far: all of its ranks count alike
  std::atomic<Comm *> child{nullptr};  // that is being made, and has no handle yet
  bool revoked = false, finalizing = false, over = false;  // `over`: halted, so nothing can be put on it

  // kInProgress while it is made, and now and then behind a launch until it was asked; kSuccess; an error that stays.
  Result state();
  // Whether anything but an abort or a revoke may be called now.
  bool ready() const { return made_ == kSuccess && !launching_; }
  bool idle();
  // kInProgress where it takes a moment: then `state` is to be asked before anything else.
  Result put(std::vector<Call> calls, const void *stream);
  void wait_until_made();
  void wait_until_idle();
  // Ends what runs and drops what waits. When it returns nobody touches the memory of any call any more. No other thread may use it meanwhile.
  void halt();

 private:
  void live(Comm *parent, Comm **handle);
  Result carry_out(const std::vector<Call> &calls);
  Result together(const std::vector<Call> &calls);
  Result all_reduce(const Call &call);
  Result all_gather(const Call &call);
  Result broadcast(const Call &call);

  Segment segment_;
  std::atomic<Result> made_{kInProgress};
  std::atomic<bool> stop_{false}, launching_{false};
  int launches_ = 0;
  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<Group> queue_;
  bool running_ = false;
  std::thread thread_;
};
