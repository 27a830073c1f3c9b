// The simulated machine: GPUs with settable values, event sets, scripted answers and calls that do not return.
// Every call of the library passes `Call`; commands (commands.cpp) change the world; both hold its one lock.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "nvml_abi.h"

namespace sim {

struct Mig {
  std::string uuid;
  unsigned gi, ci;
};

struct Gpu {
  int index;
  std::string uuid, name;
  unsigned domain = 0, bus, device = 0;
  uint64_t supported = kEveryEvent;
  bool lost = false;
  // Field ids as text ("144", or "162@3" for one link) and named values ("util.gpu"), as the command `set` gives them.
  std::map<std::string, uint64_t> values;
  std::vector<ProcessInfo> processes;
  std::vector<Mig> migs;
  std::string bdf() const;  // "00000000:9B:00.0", as NVML writes it
};

struct Set {
  std::map<int, uint64_t> masks;  // by GPU
  std::deque<EventData> events;
  uint64_t dropped = 0;
  bool freed = false;
};

struct SystemEvents {
  uint64_t mask = 0;
  std::deque<SystemEvent> events;
  bool freed = false;
};

// An answer instead of the real one, or a call that does not return; `left` calls of it remain, -1: always.
struct Script {
  std::string call;  // a pattern as of fnmatch
  int gpu;           // -1: any, and calls about no GPU
  int code = 0;
  int64_t until_ns = 0;  // of a wedge: 0 until it is released
  int64_t left = -1;
};

struct World {
  std::mutex mutex;
  std::condition_variable changed;
  int users = 0;  // nvmlInit minus nvmlShutdown
  std::string driver;
  bool blackwell = false;
  int links = 18;
  size_t queue_limit = 4096;
  std::vector<Gpu> gpus;
  std::map<EventSet, std::shared_ptr<Set>> sets;
  std::map<SystemSet, std::shared_ptr<SystemEvents>> system_sets;
  std::vector<Script> answers, wedges;
  std::map<std::pair<std::string, int>, uint64_t> calls;  // how often each was begun

  void become(int count, const std::string &profile, const std::string &version);
  // Whether there is a value by that name, and which; a field of one link falls back to the field of all.
  bool value(const Gpu &gpu, const std::string &name, uint64_t *out) const;
  bool field(const Gpu &gpu, unsigned field, unsigned scope, uint64_t *out) const;
  uint64_t named(const Gpu &gpu, const std::string &name, uint64_t otherwise = 0) const;
  // To every set that has it registered; returns how many took it.
  int post(int gpu, uint64_t type, uint64_t data, unsigned gi, unsigned ci);
  int post_system(int gpu, uint64_t type);
  // Waits while a wedge fits the call. With the lock.
  void stay_wedged(std::unique_lock<std::mutex> &lock, const char *call, int gpu);
  int scripted(const char *call, int gpu);
};

World &world();
int64_t now_ns();
int index_of(Device device, int *mig = nullptr);  // -1: no such handle
Device handle_of(int gpu, int mig = -1);
Gpu *gpu_at(World &world, int index);

// The entry of every call: counts it, wedges it, answers it by script; holds the lock afterwards.
struct Call {
  explicit Call(const char *name);        // about no GPU
  Call(const char *name, Device device);  // about one
  std::unique_lock<std::mutex> lock;
  World &world;
  int code;  // to be returned at once unless it is kSuccess
  Gpu *gpu = nullptr;
  Mig *mig = nullptr;
};

// One line of text; the answer, or an error text. `replay`: only what lasts is done, since nobody was there for the rest.
bool command(const std::string &line, std::string *answer, bool replay = false);
// Reads the control folder named by FAKE_NVML_CONTROL and goes on listening to it; once per process, called by nvmlInit.
void listen_for_commands();
std::mutex &listen_mutex();
void stop_listening_in_child();  // after a fork; with the mutex above

}  // namespace sim
