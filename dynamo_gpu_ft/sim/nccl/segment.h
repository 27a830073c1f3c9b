// The memory that the ranks of one communicator share: who has joined, a bell for each rank, a ring for each ordered pair of ranks.
//
// Its file has a name only until all have joined. Nobody in it is watched: a rank that dies or stops just does not go on.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "nccl_abi.h"

constexpr size_t kRoom = 64 << 10;  // bytes of a ring
constexpr int kNapMs = 2;           // how long a thread sleeps at most before it looks whether it is to stop

struct Ring {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> taken;
  alignas(64) char data[kRoom];
};

// One message of a rank to another, or from it, as far as it has come.
struct Transfer {
  int peer;
  bool out;
  char *at;
  size_t bytes;
  uint64_t kind;
  size_t done = 0;  // of the header and the bytes
};

class Segment {
 public:
  Segment(std::string name, int size, int rank) : name_(std::move(name)), size_(size), rank_(rank) {}
  ~Segment();
  Segment(const Segment &) = delete;
  Segment &operator=(const Segment &) = delete;

  // Maps it and takes this rank's seat. kInvalidUsage when another process has the seat.
  Result open();
  // Waits until all seats are taken, then removes the name. False when `stop` came first.
  bool all_joined(const std::atomic<bool> &stop);
  // Moves all of them, those of one pair and direction in order. kSuccess; kInProgress when `stop` came first; kInvalidUsage when a
  // message is not the one that was expected.
  Result move(std::vector<Transfer> &all, const std::atomic<bool> &stop);
  // Wakes this rank's own thread, for it to look at `stop`.
  void wake();

 private:
  struct Seat {
    alignas(64) std::atomic<uint32_t> taken;
    std::atomic<uint32_t> bell;
  };
  struct Header {
    uint64_t bytes, kind;
  };

  Seat &seat(int rank) { return reinterpret_cast<Seat *>(base_)[rank]; }
  Ring &ring(int from, int to);
  void ring_bell(int rank);
  void nap(uint32_t heard);
  bool push(Transfer &each);
  bool pull(Transfer &each, bool &wrong);
  void unlink();

  std::string name_;
  int size_, rank_;
  char *base_ = nullptr;
  size_t bytes_ = 0;
  bool named_ = false;
};
