// NVML watchers while everything happens at once: events, losses, stuck calls, errors, readers, and starts and stops in between.
// Usage: watch LIBRARY [SECONDS] [SEED], LIBRARY being the simulated NVML. In calm rounds no event may be missing.
#include <dlfcn.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "../../../csrc/gft_watch.h"
#include "support.h"

namespace {

using Command = int (*)(const char *, char *, size_t);
using Clock = std::chrono::steady_clock;

Command command;

// Gives one line and returns how many event sets took it.
uint64_t tell(const std::string &line) {
  char answer[4096] = "";
  if (command(line.c_str(), answer, sizeof answer)) {
    std::fprintf(stderr, "%s: %s\n", line.c_str(), answer);
    std::_Exit(1);
  }
  return std::strncmp(answer, "heard=", 6) ? 0 : std::strtoull(answer + 6, nullptr, 10);
}

void count_xids(void *context, const gft_watch_record *record) {
  if (!std::strcmp(record->what, "xid")) static_cast<std::atomic<uint64_t> *>(context)->fetch_add(record->count);
}

void ignore(void *, const gft_watch_record *) {}

struct Watcher {
  gft_watch_queue *queue = nullptr;
  gft_nvml_watcher *watcher = nullptr;
  std::atomic<uint64_t> xids{0};

  explicit Watcher(const char *library) {
    CHECK(gft_watch_queue_create(64, count_xids, &xids, &queue) == GFT_OK);
    gft_nvml_options options = {library, nullptr, 0, 0.01, 0.2};
    CHECK(gft_nvml_watcher_create(queue, &options, &watcher) == GFT_OK);
  }
  ~Watcher() {
    // The listener lives here, so nobody may be left who would call it.
    const auto end = Clock::now() + std::chrono::seconds(30);
    for (int ended = 0; !ended;) {
      CHECK(gft_nvml_watcher_stop(watcher, 1.0, &ended) == GFT_OK);
      CHECK(Clock::now() < end);
    }
    gft_nvml_watcher_free(watcher);
    gft_watch_queue_free(queue);
  }
};

// What the rest of a program does meanwhile.
void look(Watcher &watched, const std::atomic<bool> &over) {
  while (!over) {
    int ready = 0;
    CHECK(gft_watch_queue_wait(watched.queue, 0.005, &ready) == GFT_OK);
    CHECK(gft_watch_queue_take(watched.queue, 7, ignore, nullptr) == GFT_OK);
    CHECK(gft_nvml_watcher_gpus(watched.watcher, [](void *, const gft_nvml_gpu *) {}, nullptr) == GFT_OK);
    CHECK(gft_nvml_watcher_counts(watched.watcher, [](void *, const char *, uint64_t) {}, nullptr) == GFT_OK);
  }
}

uint64_t calm(Random &random) {
  uint64_t heard = 0;
  for (int i = 0; i < 200; ++i) {
    const std::string gpu = std::to_string(random.below(8));
    switch (random.below(4)) {
      case 0: heard += tell("burst gpu=" + gpu + " code=95 count=" + std::to_string(random.below(50))); break;
      case 1: tell("recovery gpu=" + gpu + " action=" + std::to_string(random.below(5))); break;
      default: heard += tell("xid gpu=" + gpu + " code=" + std::to_string(1 + random.below(60)));
    }
  }
  return heard;
}

void wild(Random &random) {
  for (int i = 0; i < 60; ++i) {
    const std::string gpu = std::to_string(random.below(8));
    switch (random.below(9)) {
      case 0: tell("lost gpu=" + gpu); break;
      case 1: tell("found gpu=*"); break;
      case 2: tell("wedge gpu=" + gpu + " call=fields seconds=0.3"); break;
      case 3: tell("wedge call=wait seconds=0.05"); break;
      case 4: tell("return call=wait code=999 count=3"); break;
      case 5: tell("return gpu=" + gpu + " call=register code=999 count=1"); break;
      case 6: tell("xid gpu=" + gpu + " code=79"); break;
      case 7: tell("unbind gpu=" + gpu); break;
      default: tell("burst gpu=" + gpu + " code=94 count=20");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(3000)));
  }
}

void round(const char *library, Random &random, bool is_calm) {
  tell("reset");
  Watcher one(library), two(library);
  if (!is_calm && random.below(3) == 0) tell("wedge gpu=" + std::to_string(random.below(8)) + " call=handle seconds=0.4");
  CHECK(gft_nvml_watcher_start(one.watcher) == GFT_OK);
  CHECK(gft_nvml_watcher_start(two.watcher) == GFT_OK);
  std::atomic<bool> over{false};
  std::thread readers[] = {std::thread(look, std::ref(one), std::cref(over)), std::thread(look, std::ref(two), std::cref(over))};
  if (is_calm) {
    const uint64_t heard = calm(random);
    const auto end = Clock::now() + std::chrono::seconds(30);
    while (one.xids + two.xids != heard) {
      CHECK(Clock::now() < end);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } else {
    wild(random);
    int known = 0;
    CHECK(gft_nvml_watcher_avoid(one.watcher, static_cast<int>(random.below(8)), &known) == GFT_OK && known);
  }
  tell("release");
  over = true;
  for (std::thread &reader : readers) reader.join();
}

}  // namespace

int main(int count, char **words) {
  CHECK(count >= 2);
  const double seconds = count > 2 ? std::atof(words[2]) : 3;
  Random random{count > 3 ? std::strtoull(words[3], nullptr, 10) : static_cast<uint64_t>(time(nullptr))};
  std::printf("watch: seed %llu\n", static_cast<unsigned long long>(random.state));
  void *library = dlopen(words[1], RTLD_NOW);
  CHECK(library);
  command = reinterpret_cast<Command>(dlsym(library, "fakeNvmlCommand"));
  CHECK(command);
  int rounds = 0;
  for (const auto end = Clock::now() + std::chrono::duration<double>(seconds); Clock::now() < end || rounds < 4; ++rounds)
    round(words[1], random, rounds % 2 == 0);
  std::printf("watch: ok, %d rounds\n", rounds);
}
