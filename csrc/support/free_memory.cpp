// Reads MemAvailable and, for each level of this process's control group (version 2), the limit less what cannot be
// reclaimed. Page cache counts as free; shared memory does not, because that is what arenas are made of.
#include "free_memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

namespace gft {
namespace {

constexpr uint64_t kNone = UINT64_MAX;

std::string read_small_file(const std::string &path) {
  std::string text;
  if (FILE *file = std::fopen(path.c_str(), "re")) {
    char part[4096];
    while (size_t got = std::fread(part, 1, sizeof part, file)) text.append(part, got);
    std::fclose(file);
  }
  return text;
}

// The number behind `key` at the start of a line.
uint64_t field(const std::string &text, const char *key, uint64_t otherwise) {
  std::string wanted = std::string("\n") + key;
  size_t at = ("\n" + text).find(wanted);
  unsigned long long value;
  if (at == std::string::npos || std::sscanf(text.c_str() + at + std::strlen(key), " %llu", &value) != 1) return otherwise;
  return value;
}

uint64_t number(const std::string &text) {
  unsigned long long value;
  return std::sscanf(text.c_str(), "%llu", &value) == 1 ? value : kNone;  // "max" is no limit
}

uint64_t left_in_group(const std::string &folder) {
  uint64_t limit = number(read_small_file(folder + "/memory.max"));
  uint64_t used = number(read_small_file(folder + "/memory.current"));
  if (limit == kNone || used == kNone) return kNone;
  std::string stat = read_small_file(folder + "/memory.stat");
  uint64_t cache = field(stat, "file ", 0), shared = field(stat, "shmem ", 0);
  uint64_t fixed = used - std::min(used, cache > shared ? cache - shared : 0);
  return limit > fixed ? limit - fixed : 0;
}

}  // namespace

FreeMemory free_memory() {
  FreeMemory least{kNone, ""};
  auto consider = [&least](uint64_t bytes, const char *limit) {
    if (bytes < least.bytes) least = {bytes, limit};
  };
  uint64_t available = field(read_small_file("/proc/meminfo"), "MemAvailable:", kNone);
  if (available != kNone) consider(available * 1024, "of the machine's memory (MemAvailable)");
  std::string groups = read_small_file("/proc/self/cgroup");
  size_t at = groups.find("0::");
  if (at == std::string::npos) return least;
  std::string group = groups.substr(at + 3, groups.find('\n', at) - at - 3);
  while (true) {
    consider(left_in_group("/sys/fs/cgroup" + group), "under the container's or service's memory limit (memory.max)");
    if (group.empty()) return least;
    group.resize(group.find_last_of('/') == std::string::npos ? 0 : group.find_last_of('/'));
  }
}

}  // namespace gft
