// Reads sysfs, once per device; every failure means "unknown".
// NOTE: an arena's pages lie where its creator's thread allocated them; this only helps pages that are mapped later.
#include "numa.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace gft::device {
namespace {

bool read_line(const char *path, char *text, int bytes) {
  FILE *file = std::fopen(path, "re");
  if (!file) return false;
  bool read = std::fgets(text, bytes, file) != nullptr;
  std::fclose(file);
  return read;
}

}  // namespace

int node_of_pci(int domain, int bus, int device) {
  char path[128], text[32];
  std::snprintf(path, sizeof path, "/sys/bus/pci/devices/%04x:%02x:%02x.0/numa_node", domain, bus, device);
  int node = -1;
  return read_line(path, text, sizeof text) && std::sscanf(text, "%d", &node) == 1 ? node : -1;
}

bool run_on_node(int node) noexcept {
  if (node < 0) return false;
  char path[96], text[4096];
  std::snprintf(path, sizeof path, "/sys/devices/system/node/node%d/cpulist", node);
  if (!read_line(path, text, sizeof text)) return false;
  cpu_set_t allowed, wanted;
  CPU_ZERO(&wanted);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return false;
  for (char *part = text; part && *part; part = std::strchr(part, ',') ? std::strchr(part, ',') + 1 : nullptr) {
    int first = 0, last = 0, got = std::sscanf(part, "%d-%d", &first, &last);
    if (got < 1 || first < 0) break;
    if (got == 1) last = first;
    for (int cpu = first; cpu <= std::min(last, CPU_SETSIZE - 1); ++cpu)
      if (CPU_ISSET(cpu, &allowed)) CPU_SET(cpu, &wanted);
  }
  return CPU_COUNT(&wanted) > 0 && sched_setaffinity(0, sizeof wanted, &wanted) == 0;
}

bool advise_huge_pages(uint8_t *from, size_t bytes) noexcept {
  char text[128];
  if (!read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", text, sizeof text)) return false;
  if (!std::strstr(text, "[advise]") && !std::strstr(text, "[within_size]") && !std::strstr(text, "[always]")) return false;
  return madvise(from, bytes, MADV_HUGEPAGE) == 0;
}

void populate(uint8_t *from, size_t bytes) noexcept {
#ifdef MADV_POPULATE_WRITE
  (void)madvise(from, bytes, MADV_POPULATE_WRITE);
#else
  (void)from, (void)bytes;
#endif
}

}  // namespace gft::device
