// One thread that follows a log and pushes what it says about GPUs into the queue: the tail, the stream and the clock together.
// Python may be stuck meanwhile; nothing here waits for it.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "log_stream.h"
#include "looker.h"
#include "queue.h"
#include "tail.h"

namespace gft::watch {

struct ReaderRules {
  LogFormat format = LogFormat::automatic;
  bool from_start = false;  // what is there already comes too, with the fact "baseline"
  Fold::Rules fold;
  Tail::ReadCall call = nullptr;
};

class LogReader {
 public:
  // Opens the log (see Tail for errors) and starts the thread.
  LogReader(std::shared_ptr<Queue> queue, const std::string &path, ReaderRules rules);
  ~LogReader();  // ends the thread and gives out what is folded; in a forked child, where there is no thread, only forgets
  LogReader(const LogReader &) = delete;
  LogReader &operator=(const LogReader &) = delete;

  uint64_t lines() const noexcept { return stream_.lines(); }

 private:
  void run();
  bool read_some(int64_t now);
  void take_record(std::string_view record, int64_t now);
  int pause(int64_t now) const;

  const std::shared_ptr<Queue> queue_;
  const ReaderRules rules_;
  const int64_t opened_ns_;
  Tail tail_;
  LogStream stream_;
  std::atomic<bool> ending_{false};
  uint64_t last_serial_ = 0;
  bool lost_ = false;
  Looker looker_;
};

}  // namespace gft::watch
