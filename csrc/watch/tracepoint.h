// The driver's tracepoints (since 575.51): every XID and SXid, also those that NVML drops, in a tracefs instance of our own.
// The instance vanishes when the reader is closed; what a killed process left behind is removed by the next one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "log_reader.h"

namespace gft::watch {

// A folder of tracefs with its own buffers and its own choice of events.
class TraceInstance {
 public:
  // Makes "dynamo_gpu_ft-<pid>-<start>-<n>" under `tracefs`/instances, with those of `events` ("nvidia/nvidia_dev_xid") that there are.
  // GFT_NOT_FOUND without tracefs or any of the events; GFT_IO where it may not be made.
  TraceInstance(const std::string &tracefs, const std::vector<std::string> &events);
  ~TraceInstance();
  TraceInstance(const TraceInstance &) = delete;
  TraceInstance &operator=(const TraceInstance &) = delete;
  std::string pipe() const { return folder_ + "/trace_pipe"; }
  const std::vector<std::string> &enabled() const { return enabled_; }

 private:
  std::string folder_;
  std::vector<std::string> enabled_;
  const uint64_t made_in_;
};

class TraceReader {
 public:
  // `path`: "" looks for tracefs where it is usually mounted; another folder is a tracefs; a file is followed like a trace_pipe.
  TraceReader(std::shared_ptr<Queue> queue, const std::string &path, const std::vector<std::string> &events, Fold::Rules fold);
  uint64_t lines() const noexcept { return reader_->lines(); }
  const std::vector<std::string> &enabled() const;

 private:
  std::unique_ptr<TraceInstance> instance_;  // outlives the reader, which has its pipe open
  std::unique_ptr<LogReader> reader_;
};

// What of `events` could be read under `tracefs` ("" : where it is usually mounted); changes nothing. Throws as TraceInstance does.
std::vector<std::string> readable_tracepoints(const std::string &tracefs, const std::vector<std::string> &events);

}  // namespace gft::watch
