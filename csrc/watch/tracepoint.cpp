// Makes, fills and removes the instance by small files, as tracefs wants it.
// An instance whose pipe is open cannot be removed (EBUSY), so a living reader is safe from the tidying of another container's.
#include "tracepoint.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "../support/fail.h"
#include "../support/fork_guard.h"
#include "process.h"
#include "text.h"

namespace gft::watch {
namespace {

constexpr const char *kPlaces[] = {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"};
constexpr std::string_view kPrefix = "dynamo_gpu_ft-";

bool exists(const std::string &path) { return access(path.c_str(), F_OK) == 0; }

bool put(const std::string &path, std::string_view text) {
  int file = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) return false;
  bool good = write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  int why = errno;
  close(file);
  errno = why;
  return good;
}

std::string tracefs_at(const std::string &asked) {
  if (!asked.empty()) {
    if (!exists(asked + "/instances")) fail(GFT_NOT_FOUND, "%s is no tracefs: it has no folder \"instances\"", asked.c_str());
    return asked;
  }
  int why = ENOENT;
  for (const char *place : kPlaces) {
    if (exists(std::string(place) + "/instances")) return place;
    if (errno != ENOENT) why = errno;
  }
  if (why != ENOENT)
    fail(GFT_IO, "cannot look into tracefs at %s: %s; it needs root or CAP_DAC_READ_SEARCH, or a group given by remounting it (gid=)",
         kPlaces[0], strerror(why));
  fail(GFT_NOT_FOUND, "there is no tracefs at %s; mount it (mount -t tracefs none %s), in a container: -v %s:%s", kPlaces[0],
       kPlaces[0], kPlaces[0], kPlaces[0]);
}

std::vector<std::string> found_events(const std::string &tracefs, const std::vector<std::string> &events) {
  std::vector<std::string> out;
  std::string all;
  for (const std::string &event : events) {
    all += (all.empty() ? "" : ", ") + event;
    if (exists(tracefs + "/events/" + event)) out.push_back(event);
  }
  if (out.empty())
    fail(GFT_NOT_FOUND, "tracefs %s has none of the events %s; the NVIDIA driver has them since 575.51", tracefs.c_str(), all.c_str());
  return out;
}

void remove_left_behind(const std::string &instances) {
  DIR *folder = opendir(instances.c_str());
  if (!folder) return;
  std::vector<std::string> dead;
  while (struct dirent *entry = readdir(folder)) {
    Cursor at{entry->d_name};
    int64_t pid, started;
    if (at.skip(kPrefix) && at.number(pid) && at.skip("-") && at.number(started) && pid <= INT32_MAX &&
        !process_state(static_cast<uint32_t>(pid), static_cast<uint64_t>(started)).there)
      dead.emplace_back(instances + "/" + entry->d_name);
  }
  closedir(folder);
  for (const std::string &each : dead) rmdir(each.c_str());
}

}  // namespace

TraceInstance::TraceInstance(const std::string &asked, const std::vector<std::string> &events)
    : made_in_((guard_forks(), fork_generation())) {
  static std::atomic<unsigned> count{0};
  std::string tracefs = tracefs_at(asked), instances = tracefs + "/instances";
  std::vector<std::string> there = found_events(tracefs, events);
  remove_left_behind(instances);
  auto pid = static_cast<uint32_t>(getpid());
  std::string name = std::string(kPrefix) + std::to_string(pid) + "-" + std::to_string(process_state(pid, 0).started) + "-" +
                     std::to_string(count.fetch_add(1));
  folder_ = instances + "/" + name;
  if (mkdir(folder_.c_str(), 0700) != 0)
    fail(GFT_IO, "cannot make the trace instance %s: %s; tracefs must be writable for this process (root, or remounted with gid=)",
         folder_.c_str(), strerror(errno));
  // Faults are rare: a small buffer is enough, and each must be told at once, not when the buffer is half full.
  (void)put(folder_ + "/buffer_size_kb", "64");
  (void)put(folder_ + "/buffer_percent", "0");
  for (const std::string &event : there)
    if (put(folder_ + "/events/" + event + "/enable", "1")) enabled_.push_back(event);
  if (enabled_.empty()) {
    int why = errno;
    rmdir(folder_.c_str());
    fail(GFT_IO, "cannot enable %s in the trace instance %s: %s; it needs root or CAP_SYS_ADMIN", there.front().c_str(),
         folder_.c_str(), strerror(why));
  }
}

TraceInstance::~TraceInstance() {
  if (fork_generation() == made_in_) rmdir(folder_.c_str());
}

TraceReader::TraceReader(std::shared_ptr<Queue> queue, const std::string &path, const std::vector<std::string> &events,
                         Fold::Rules fold) {
  ReaderRules rules;
  rules.format = LogFormat::trace;
  rules.fold = fold;
  struct stat status;
  if (!path.empty() && (stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode))) {
    reader_ = std::make_unique<LogReader>(std::move(queue), path, rules);
    return;
  }
  instance_ = std::make_unique<TraceInstance>(path, events);
  reader_ = std::make_unique<LogReader>(std::move(queue), instance_->pipe(), rules);
}

const std::vector<std::string> &TraceReader::enabled() const {
  static const std::vector<std::string> none;
  return instance_ ? instance_->enabled() : none;
}

std::vector<std::string> readable_tracepoints(const std::string &asked, const std::vector<std::string> &events) {
  std::string tracefs = tracefs_at(asked);
  std::vector<std::string> there = found_events(tracefs, events);
  if (access((tracefs + "/instances").c_str(), W_OK) != 0)
    fail(GFT_IO, "cannot make a trace instance in %s: %s; tracefs must be writable for this process", tracefs.c_str(), strerror(errno));
  return there;
}

}  // namespace gft::watch
