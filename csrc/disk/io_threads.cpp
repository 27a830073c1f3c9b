// pread, pwrite and fdatasync by a few threads that all queues of a log share.
// A thread that the kernel keeps in a read keeps its operation; callers give up at their deadline and leave both behind.
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <thread>

#include "../support/fail.h"
#include "../support/quiet.h"
#include "io.h"

namespace gft::disk {
namespace {

struct Finished {
  std::mutex mutex;
  std::condition_variable there;
  std::deque<Op *> ops;
};

struct Pool {
  std::mutex mutex;
  std::condition_variable work;
  std::deque<std::pair<Op *, std::shared_ptr<Finished>>> ops;
  unsigned idle = 0, threads = 0, most = 0;
  bool stop = false;
};

void perform(Op &op) {
  while (true) {
    ssize_t got;
    if (op.kind == Fault::Kind::sync)
      got = fdatasync(op.descriptor);
    else if (op.kind == Fault::Kind::read)
      got = pread(op.descriptor, op.data + op.done, op.bytes - op.done, static_cast<off_t>(op.offset + op.done));
    else
      got = pwrite(op.descriptor, op.data + op.done, op.bytes - op.done, static_cast<off_t>(op.offset + op.done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      op.error = errno;
      return;
    }
    op.done += static_cast<uint64_t>(got);
    if (op.kind == Fault::Kind::sync || op.done >= op.bytes) return;
    if (got == 0) {
      op.error = op.kind == Fault::Kind::read ? ENODATA : EIO;
      return;
    }
  }
}

void serve(std::shared_ptr<Pool> pool) {
  std::unique_lock lock(pool->mutex);
  while (true) {
    ++pool->idle;
    pool->work.wait(lock, [&] { return pool->stop || !pool->ops.empty(); });
    --pool->idle;
    if (pool->ops.empty()) return;
    auto [op, finished] = std::move(pool->ops.front());
    pool->ops.pop_front();
    lock.unlock();
    perform(*op);
    {
      std::lock_guard done(finished->mutex);
      finished->ops.push_back(op);
      finished->there.notify_one();
    }
    finished.reset();
    lock.lock();
  }
}

class ThreadQueue : public Queue {
 public:
  explicit ThreadQueue(std::shared_ptr<Pool> pool) : pool_(std::move(pool)), finished_(std::make_shared<Finished>()) {}

  void push(Op *op) override {
    std::lock_guard lock(pool_->mutex);
    pool_->ops.emplace_back(op, finished_);
    ++in_flight_;
    if (pool_->idle < pool_->ops.size() && pool_->threads < pool_->most) start();
    pool_->work.notify_one();
  }

  Op *take(Clock::time_point deadline) override {
    std::unique_lock lock(finished_->mutex);
    if (!finished_->there.wait_until(lock, deadline, [&] { return !finished_->ops.empty(); })) return nullptr;
    Op *op = finished_->ops.front();
    finished_->ops.pop_front();
    --in_flight_;
    return op;
  }

 private:
  void start() {
    SignalsBlocked quiet;
    try {
      std::thread(serve, pool_).detach();
      ++pool_->threads;
    } catch (const std::exception &) {
      // One thread is enough; with none the operations wait until the callers' deadlines.
    }
  }

  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Finished> finished_;
};

class ThreadIo : public Io {
 public:
  explicit ThreadIo(unsigned threads) : pool_(std::make_shared<Pool>()) { pool_->most = threads ? threads : 1; }
  ~ThreadIo() override {
    std::lock_guard lock(pool_->mutex);
    pool_->stop = true;
    pool_->work.notify_all();
  }
  std::unique_ptr<Queue> queue() override { return std::make_unique<ThreadQueue>(pool_); }
  const char *name() const override { return "threads"; }

 private:
  std::shared_ptr<Pool> pool_;
};

}  // namespace

std::shared_ptr<Io> thread_io(unsigned threads) { return std::make_shared<ThreadIo>(threads); }

}  // namespace gft::disk
