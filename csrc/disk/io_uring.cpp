// io_uring through liburing, linked statically where the build found it.
// One ring per queue; a ring that still has operations in flight is never torn down (io_batch.h sees to that).
#include "io.h"

#ifdef GFT_HAVE_URING
#include <liburing.h>

#include <cerrno>
#include <cstring>
#include <deque>

#include "../support/fail.h"
#endif


namespace gft::disk {

#ifdef GFT_HAVE_URING

namespace {

class UringQueue : public Queue {
 public:
  explicit UringQueue(unsigned depth) {
    int error = io_uring_queue_init(depth, &ring_, 0);
    if (error < 0)
      fail(GFT_IO, "cannot make an io_uring: %s; allow more locked memory (ulimit -l) or use backend \"threads\"",
           std::strerror(-error));
  }
  ~UringQueue() override { io_uring_queue_exit(&ring_); }

  void push(Op *op) override {
    waiting_.push_back(op);
    ++in_flight_;
    submit();
  }

  Op *take(Clock::time_point deadline) override {
    while (in_flight_ > 0) {
      io_uring_cqe *cqe = nullptr;
      int error = io_uring_peek_cqe(&ring_, &cqe);
      if (error == -EAGAIN) {
        auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
        if (left <= 0) return nullptr;
        __kernel_timespec time{left / 1'000'000'000, left % 1'000'000'000};
        error = io_uring_wait_cqe_timeout(&ring_, &cqe, &time);
        if (error == -ETIME) return nullptr;
      }
      if (error == -EINTR || error == -EAGAIN) continue;
      if (error < 0) return nullptr;  // the caller's deadline decides
      auto *op = static_cast<Op *>(io_uring_cqe_get_data(cqe));
      int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      if (!op) continue;  // the time-out's own completion
      if (!finished(*op, result)) {
        waiting_.push_back(op);
        submit();
        continue;
      }
      submit();
      --in_flight_;
      return op;
    }
    return nullptr;
  }

 private:
  static bool finished(Op &op, int result) {
    if (result == -EINTR || result == -EAGAIN) return false;
    if (result < 0) {
      op.error = -result;
      return true;
    }
    op.done += static_cast<uint64_t>(result);
    if (op.kind == Fault::Kind::sync || op.done >= op.bytes) return true;
    if (result == 0) op.error = op.kind == Fault::Kind::read ? ENODATA : EIO;
    return result == 0;
  }

  void submit() {
    bool any = false;
    while (!waiting_.empty()) {
      io_uring_sqe *sqe = io_uring_get_sqe(&ring_);
      if (!sqe) break;
      Op *op = waiting_.front();
      waiting_.pop_front();
      any = true;
      auto bytes = static_cast<unsigned>(op->bytes - op->done);
      if (op->kind == Fault::Kind::sync)
        io_uring_prep_fsync(sqe, op->descriptor, IORING_FSYNC_DATASYNC);
      else if (op->kind == Fault::Kind::read)
        io_uring_prep_read(sqe, op->descriptor, op->data + op->done, bytes, op->offset + op->done);
      else
        io_uring_prep_write(sqe, op->descriptor, op->data + op->done, bytes, op->offset + op->done);
      io_uring_sqe_set_data(sqe, op);
    }
    if (any) (void)io_uring_submit(&ring_);  // what it did not take stays in the ring and goes with the next
  }

  io_uring ring_{};
  std::deque<Op *> waiting_;
};

class UringIo : public Io {
 public:
  explicit UringIo(unsigned depth) : depth_(depth) {}
  std::unique_ptr<Queue> queue() override { return std::make_unique<UringQueue>(depth_); }
  const char *name() const override { return "io_uring"; }

 private:
  unsigned depth_;
};

}  // namespace

std::shared_ptr<Io> uring_io(unsigned depth, std::string &why) {
  io_uring ring{};
  int error = io_uring_queue_init(2, &ring, 0);
  if (error < 0) {
    why = std::string("the kernel refuses it (") + std::strerror(-error) + ")";
    return nullptr;
  }
  io_uring_probe *probe = io_uring_get_probe_ring(&ring);
  bool able = probe && io_uring_opcode_supported(probe, IORING_OP_READ) &&
              io_uring_opcode_supported(probe, IORING_OP_WRITE) && io_uring_opcode_supported(probe, IORING_OP_FSYNC);
  if (probe) io_uring_free_probe(probe);
  io_uring_queue_exit(&ring);
  if (!able) {
    why = "this kernel's does not know plain reads and writes";
    return nullptr;
  }
  return std::make_shared<UringIo>(depth);
}

const char *uring_version() { return "present"; }

#else

std::shared_ptr<Io> uring_io(unsigned, std::string &why) {
  why = "this build lacks it (install liburing-dev and build again)";
  return nullptr;
}

const char *uring_version() { return "absent"; }

#endif

}  // namespace gft::disk
