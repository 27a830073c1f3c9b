// Which kind of I/O a log uses, and the wrapper that fails chosen operations for tests.
// Containers often forbid io_uring, so it is tried and not assumed.
#include <array>
#include <atomic>
#include <deque>

#include "../support/fail.h"
#include "io.h"

namespace gft::disk {
namespace {

struct Plan {
  std::vector<Fault> faults;
  std::array<std::atomic<uint64_t>, 3> seen{};

  int error_of(Fault::Kind kind) {
    uint64_t nth = ++seen[static_cast<size_t>(kind)];
    for (const Fault &fault : faults)
      if (fault.kind == kind && nth >= fault.nth && nth - fault.nth < fault.count) return fault.error;
    return 0;
  }
};

// A failed operation does not reach the disk, as with a disk that is gone.
class FaultyQueue : public Queue {
 public:
  FaultyQueue(std::unique_ptr<Queue> queue, std::shared_ptr<Plan> plan) : queue_(std::move(queue)), plan_(std::move(plan)) {}
  void push(Op *op) override {
    ++in_flight_;
    op->error = plan_->error_of(op->kind);
    if (op->error)
      failed_.push_back(op);
    else
      queue_->push(op);
  }
  Op *take(Clock::time_point deadline) override {
    Op *op = nullptr;
    if (!failed_.empty()) {
      op = failed_.front();
      failed_.pop_front();
    } else {
      op = queue_->take(deadline);
    }
    if (op) --in_flight_;
    return op;
  }

 private:
  std::unique_ptr<Queue> queue_;
  std::shared_ptr<Plan> plan_;
  std::deque<Op *> failed_;
};

class FaultyIo : public Io {
 public:
  FaultyIo(std::shared_ptr<Io> io, std::vector<Fault> faults) : io_(std::move(io)), plan_(std::make_shared<Plan>()) {
    plan_->faults = std::move(faults);
  }
  std::unique_ptr<Queue> queue() override { return std::make_unique<FaultyQueue>(io_->queue(), plan_); }
  const char *name() const override { return io_->name(); }

 private:
  std::shared_ptr<Io> io_;
  std::shared_ptr<Plan> plan_;
};

}  // namespace

std::shared_ptr<Io> with_faults(std::shared_ptr<Io> io, std::vector<Fault> faults) {
  return std::make_shared<FaultyIo>(std::move(io), std::move(faults));
}

std::shared_ptr<Io> Io::choose(const Options &options) {
  std::shared_ptr<Io> io;
  if (options.backend != Backend::threads) {
    std::string why;
    io = uring_io(options.depth, why);
    if (!io && options.backend == Backend::io_uring)
      fail(GFT_MISMATCH, "io_uring was asked for, but %s; use backend \"best\" or \"threads\"", why.c_str());
  }
  if (!io) io = thread_io(options.depth < 16 ? options.depth : 16);
  return options.faults.empty() ? io : with_faults(std::move(io), options.faults);
}

}  // namespace gft::disk
