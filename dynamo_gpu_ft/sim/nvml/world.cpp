// The world's own rules: what a new one holds, who gets an event, which call is answered by script and which stays away.
// A forked child starts with a world of its own, as NVML would have it be initialised again.
#include "world.h"

#include <fnmatch.h>
#include <pthread.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace sim {
namespace {

char handles[kMaxGpus][kMaxMig + 1];  // only their addresses mean something

std::atomic<World *> made{nullptr};

void make() {
  auto *fresh = new World;  // never freed: threads may be inside it until the process ends
  const char *count = std::getenv("FAKE_NVML_GPUS");
  fresh->become(count ? std::atoi(count) : 8, "h100", "595.45.04");
  made = fresh;
}

void before_fork() {
  listen_mutex().lock();
  world().mutex.lock();
}
void after_fork_in_parent() {
  world().mutex.unlock();
  listen_mutex().unlock();
}
void after_fork_in_child() {
  // The parent's world stays where it is: its waiters are not here, and destroying what they wait on would wait for them.
  make();
  stop_listening_in_child();
  listen_mutex().unlock();
}

bool fits(const Script &script, const char *call, int gpu) {
  return (script.gpu < 0 || script.gpu == gpu) && script.left != 0 && fnmatch(script.call.c_str(), call, 0) == 0;
}

}  // namespace

int64_t now_ns() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

World &world() {
  static std::once_flag once;
  std::call_once(once, [] {
    make();
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  });
  return *made;
}

std::string Gpu::bdf() const {
  char text[32];
  std::snprintf(text, sizeof text, "%08X:%02X:%02X.0", domain, bus, device);
  return text;
}

void World::become(int count, const std::string &profile, const std::string &version) {
  blackwell = profile == "b200" || profile == "gb200";
  driver = version + " SIMULATED";
  links = profile == "pcie" ? 0 : 18;
  gpus.clear();
  for (int i = 0; i < count && i < kMaxGpus; ++i) {
    Gpu gpu;
    gpu.index = i;
    char uuid[48];
    std::snprintf(uuid, sizeof uuid, "GPU-51d0feed-0000-4000-8000-%012x", i);
    gpu.uuid = uuid;
    gpu.name = std::string("SIMULATED ") + (profile == "pcie" ? "L40S" : blackwell ? "B200" : "H100");
    gpu.bus = 0x18 + 0x0b * static_cast<unsigned>(i) % 0xe0;
    for (const char *zero : {"3", "4", "5", "6", "94", "95", "142", "143", "144", "145", "230"}) gpu.values[zero] = 0;
    if (links) {
      for (int field : blackwell ? std::vector<int>{206, 207, 208, 209, 210, 211, 212, 213, 214, 215, 221, 222, 294, 295}
                                 : std::vector<int>{161, 162, 163})
        gpu.values[std::to_string(field)] = 0;
      gpu.values["91"] = static_cast<uint64_t>(links);
      gpu.values["165"] = 1;
      gpu.values["fabric.state"] = 3;
      gpu.values["fabric.clique"] = 1;
      gpu.values["fabric.health_mask"] = 0x1AA;  // every part present and healthy
      gpu.values["fabric.health_summary"] = 1;
    }
    gpus.push_back(std::move(gpu));
  }
}

bool World::value(const Gpu &gpu, const std::string &name, uint64_t *out) const {
  auto found = gpu.values.find(name);
  if (found == gpu.values.end()) return false;
  *out = found->second;
  return true;
}

bool World::field(const Gpu &gpu, unsigned field, unsigned scope, uint64_t *out) const {
  const std::string name = std::to_string(field);
  return value(gpu, name + "@" + std::to_string(scope), out) || value(gpu, name, out);
}

uint64_t World::named(const Gpu &gpu, const std::string &name, uint64_t otherwise) const {
  uint64_t out = otherwise;
  value(gpu, name, &out);
  return out;
}

int World::post(int gpu, uint64_t type, uint64_t data, unsigned gi, unsigned ci) {
  int heard = 0;
  for (auto &[handle, set] : sets) {
    auto mask = set->masks.find(gpu);
    if (mask == set->masks.end() || !(mask->second & type)) continue;
    if (set->events.size() >= queue_limit) {
      ++set->dropped;
      continue;
    }
    set->events.push_back({handle_of(gpu), type, data, gi, ci});
    ++heard;
  }
  changed.notify_all();
  return heard;
}

int World::post_system(int gpu, uint64_t type) {
  const Gpu &of = gpus[static_cast<size_t>(gpu)];
  int heard = 0;
  for (auto &[handle, set] : system_sets) {
    if (!(set->mask & type)) continue;
    set->events.push_back({type, of.domain << 16 | of.bus << 8 | of.device});
    ++heard;
  }
  changed.notify_all();
  return heard;
}

void World::stay_wedged(std::unique_lock<std::mutex> &lock, const char *call, int gpu) {
  for (;;) {
    const Script *away = nullptr;
    for (const Script &wedge : wedges)
      if (fits(wedge, call, gpu) && (wedge.until_ns == 0 || wedge.until_ns > now_ns())) away = &wedge;
    if (!away) return;
    if (away->until_ns)
      changed.wait_for(lock, std::chrono::nanoseconds(away->until_ns - now_ns()));
    else
      changed.wait(lock);
  }
}

int World::scripted(const char *call, int gpu) {
  for (Script &answer : answers) {
    if (!fits(answer, call, gpu)) continue;
    if (answer.left > 0) --answer.left;
    return answer.code;
  }
  return kSuccess;
}

int index_of(Device device, int *mig) {
  auto *at = reinterpret_cast<char *>(device);
  if (at < &handles[0][0] || at > &handles[kMaxGpus - 1][kMaxMig]) return -1;
  auto place = static_cast<int>(at - &handles[0][0]);
  if (mig) *mig = place % (kMaxMig + 1) - 1;
  return place / (kMaxMig + 1);
}

Device handle_of(int gpu, int mig) { return reinterpret_cast<Device>(&handles[gpu][mig + 1]); }

Gpu *gpu_at(World &world, int index) {
  return index >= 0 && index < static_cast<int>(world.gpus.size()) ? &world.gpus[static_cast<size_t>(index)] : nullptr;
}

Call::Call(const char *name) : lock(sim::world().mutex), world(sim::world()), code(kSuccess) {
  ++world.calls[{name, -1}];
  world.stay_wedged(lock, name, -1);
  code = world.users ? world.scripted(name, -1) : kUninitialized;
}

Call::Call(const char *name, Device device) : lock(sim::world().mutex), world(sim::world()), code(kSuccess) {
  int slice = -1;
  const int index = index_of(device, &slice);
  ++world.calls[{name, index}];
  world.stay_wedged(lock, name, index);
  gpu = gpu_at(world, index);
  if (gpu && slice >= 0 && slice < static_cast<int>(gpu->migs.size())) mig = &gpu->migs[static_cast<size_t>(slice)];
  if (!world.users)
    code = kUninitialized;
  else if (!gpu || (slice >= 0 && !mig))
    code = kInvalidArgument;
  else
    code = world.scripted(name, index);
  if (code == kSuccess && gpu->lost) code = kGpuIsLost;
}

}  // namespace sim
