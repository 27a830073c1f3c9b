// Parses /proc/PID/stat and /proc/PID/task/*/schedstat with plain reads into small buffers.
#include "process.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace gft::watch {
namespace {

bool read_small(const char *path, char *buffer, size_t size) noexcept {
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  ssize_t got = read(descriptor, buffer, size - 1);
  close(descriptor);
  if (got <= 0) return false;
  buffer[got] = 0;
  return true;
}

}  // namespace

ProcessState process_state(uint32_t pid, uint64_t started) noexcept {
  char path[64], text[1024];
  std::snprintf(path, sizeof path, "/proc/%u/stat", pid);
  if (!read_small(path, text, sizeof text)) return {};
  // The name may hold anything, parentheses included: fields count from after the last one.
  const char *at = std::strrchr(text, ')');
  if (!at || at[1] != ' ') return {};
  ProcessState out;
  out.state = at[2];
  at += 2;
  for (int field = 3; field < 22 && at; ++field) {
    at = std::strchr(at, ' ');
    if (at) ++at;
  }
  out.started = at ? std::strtoull(at, nullptr, 10) : 0;
  out.there = out.state != 'Z' && out.state != 'X' && (!started || started == out.started);
  return out;
}

int64_t ProcessorWaits::look(const std::vector<uint32_t> &pids) {
  std::unordered_map<uint64_t, int64_t> now;
  int64_t longest = 0;
  for (uint32_t pid : pids) {
    char path[64 + 256], text[128];
    std::snprintf(path, sizeof path, "/proc/%u/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks) continue;
    while (const dirent *task = readdir(tasks)) {
      if (task->d_name[0] == '.') continue;
      std::snprintf(path, sizeof path, "/proc/%u/task/%s/schedstat", pid, task->d_name);
      long long ran = 0, waited = 0;
      if (!read_small(path, text, sizeof text) || std::sscanf(text, "%lld %lld", &ran, &waited) != 2) continue;
      const uint64_t key = uint64_t{pid} << 32 | static_cast<uint32_t>(std::strtoul(task->d_name, nullptr, 10));
      now[key] = waited;
      if (auto before = last_.find(key); before != last_.end()) longest = std::max<int64_t>(longest, waited - before->second);
    }
    closedir(tasks);
  }
  last_ = std::move(now);
  return counted_ += longest;
}

}  // namespace gft::watch
