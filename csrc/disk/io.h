// Reads, writes and syncs with many in flight: by io_uring where the kernel allows it, else by threads.
// A queue belongs to one thread at a time; operations and their memory must live until they were taken back.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "format.h"
#include "log.h"

namespace gft::disk {

struct Op {
  Fault::Kind kind = Fault::Kind::read;
  int descriptor = -1;
  uint8_t *data = nullptr;
  uint64_t bytes = 0, offset = 0;
  int error = 0;      // errno; a read behind the end of the file is ENODATA
  uint64_t done = 0;  // bytes so far: short transfers are continued
  uint64_t owner = 0; // the caller's
};

// Large enough to be cheap, small enough to run side by side. Payloads of a round size and their header pages make no crumb.
inline constexpr uint64_t kLargestPiece = (uint64_t{1} << 20) + (uint64_t{64} << 10);

// Long transfers are cut into equal pieces of whole pages.
inline uint64_t piece_of(uint64_t bytes) {
  uint64_t count = (bytes + kLargestPiece - 1) / kLargestPiece;
  return count ? whole_pages((bytes + count - 1) / count) : bytes;
}

class Queue {
 public:
  virtual ~Queue() = default;
  virtual void push(Op *op) = 0;
  // A finished operation; null when there was none until `deadline`.
  virtual Op *take(Clock::time_point deadline) = 0;
  size_t in_flight() const { return in_flight_; }

 protected:
  size_t in_flight_ = 0;
};

// Where queues come from. Started on first use: no thread before.
class Io {
 public:
  virtual ~Io() = default;
  virtual std::unique_ptr<Queue> queue() = 0;
  virtual const char *name() const = 0;
  // Throws GFT_MISMATCH when io_uring is asked for and not there.
  static std::shared_ptr<Io> choose(const Options &options);
};

std::shared_ptr<Io> thread_io(unsigned threads);
// Null with `why` when the build or the kernel does not have it.
std::shared_ptr<Io> uring_io(unsigned depth, std::string &why);
std::shared_ptr<Io> with_faults(std::shared_ptr<Io> io, std::vector<Fault> faults);
const char *uring_version();  // of liburing at build, or "absent"

}  // namespace gft::disk
