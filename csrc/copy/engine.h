// The copy path in the background: threads that take loads before stores, and never make their caller wait. Who moves the
// bytes, the processor or a device, is the mover's business.
// The only mutable state shared with callers is behind one mutex that is never held during a copy.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "job.h"
#include "layout.h"
#include "mover.h"
#include "pace.h"
#include "store_line.h"

namespace gft {

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  // Threads hold a reference to the engine, so a thread that outlives a close with deadline touches nothing freed.
  // `make` gets the writer once it is known to fit the layout.
  using MakeMover = std::function<std::shared_ptr<Mover>(const std::shared_ptr<Writer> &, const Layout &)>;
  static std::shared_ptr<Engine> start(std::shared_ptr<Writer> writer, Layout layout, int threads, const MakeMover &make,
                                       PaceRules pace = {});
  Engine(std::shared_ptr<Writer> writer, Layout layout, std::shared_ptr<Mover> mover, PaceRules pace);
  ~Engine();

  void submit(bool load, int64_t job_id, std::vector<BlockSpec> blocks, uint64_t stream = 0);
  void step(double seconds);
  std::vector<std::pair<std::string, double>> facts();
  void mark(std::vector<std::string> hashes, Writer::Mark how);
  void pin(int64_t job_id, std::vector<std::string> hashes, uint32_t until);  // a job with one status
  void cancel(const std::vector<int64_t> &job_ids);
  std::vector<std::shared_ptr<Job>> poll();
  bool wait(double seconds);
  void backlog(uint64_t &blocks, uint64_t &bytes);
  bool close(double seconds);
  // For the handle's end: drops what is queued and waits a bounded time for the copy at work.
  void abandon() noexcept;

 private:
  using Lock = std::unique_lock<std::mutex>;
  void check() const;
  void run();
  bool work_on_something(Lock &lock);
  std::shared_ptr<Job> load_to_work_on();
  void work_on_load(Lock &lock, std::shared_ptr<Job> job);
  void work_on_store(Lock &lock);
  void settle(Job &job, size_t index, gft_status status, const std::string &detail);
  void drop_queued(Job &job);
  void complete(Job &job);
  void must_be_new(int64_t job_id) const;
  // Gives the results of stores that a wedged device keeps from arriving.
  void watch(Lock &lock);
  bool wait_for(Lock &lock, Job::Clock::time_point deadline, const std::function<bool()> &done);
  double pause_before_stores();
  static double seconds_now() { return std::chrono::duration<double>(Job::Clock::now().time_since_epoch()).count(); }
  bool idle() const { return active_.empty() && marks_pending_ == 0; }

  const std::shared_ptr<Writer> writer_;
  const Layout layout_;
  const uint64_t fork_generation_;
  Writer::LaneKept kept_;  // keeps the lane while threads may write to its slots
  const std::shared_ptr<Mover> mover_;
  StoreLine line_;

  std::mutex mutex_;
  std::condition_variable work_, progress_;
  std::deque<std::shared_ptr<Job>> loads_;
  std::deque<StoreItem> stores_;
  std::map<int64_t, std::shared_ptr<Job>> active_;
  std::vector<std::shared_ptr<Job>> finished_;
  uint64_t marks_pending_ = 0, backlog_blocks_ = 0;
  uint64_t in_line_ = 0, line_limit_ = 1;  // items that entered the store line and have not left it
  bool closing_ = false, stop_ = false;
  Pace pace_;
  size_t threads_alive_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace gft
