// Writers die with open claims while others take over their lanes and yet others look for room: a slot that somebody alive
// is writing must never be given away. The processes are real; each checks that no seal of its own finds the slot changed.
#include <sys/wait.h>
#include <time.h>

#include "support.h"

static const auto *kToken = reinterpret_cast<const uint8_t *>("0123456789abcdef");

static double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

static gft_writer *writer_of(const std::string &path, uint32_t shard) {
  gft_arena *arena = nullptr;
  gft_writer *writer = nullptr;
  CHECK(gft_arena_open(path.c_str(), 0, &arena) == GFT_OK);
  CHECK(gft_arena_attach(arena, shard, kToken, 0, 0, &writer) == GFT_OK);
  return writer;
}

// Fills and empties the arena all the time.
static void evict(const std::string &path, uint32_t shard, double end) {
  gft_writer *writer = writer_of(path, shard);
  for (uint64_t i = 0; now() < end; ++i) {
    std::string hash = std::to_string(shard) + "-" + std::to_string(i);
    gft_claim *claim = nullptr;
    if (gft_writer_claim(writer, bytes_of(hash), no_parent(), 0, &claim) != GFT_OK) continue;
    CHECK(gft_claim_seal(claim) == GFT_OK);
    gft_claim_free(claim);
    gft_bytes mark = bytes_of(hash);
    CHECK(gft_writer_release(writer, &mark, 1) == GFT_OK);
  }
}

// Claims many, seals half, and is gone.
static void live_and_die(const std::string &path, uint32_t shard, uint64_t round) {
  gft_writer *writer = writer_of(path, shard);
  std::vector<gft_claim *> open;
  for (int i = 0; i < 20; ++i) {
    std::string hash = std::to_string(shard) + "/" + std::to_string(round) + "/" + std::to_string(i);
    gft_claim *claim = nullptr;
    if (gft_writer_claim(writer, bytes_of(hash), no_parent(), 0, &claim) == GFT_OK) open.push_back(claim);
  }
  for (size_t i = 0; i < open.size() / 2; ++i) CHECK(gft_claim_seal(open[i]) == GFT_OK);
}

template <typename Body>
static pid_t in_child(Body body) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    body();
    _exit(0);
  }
  return child;
}

static void expect_success(pid_t child) {
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv) {
  double end = now() + (argc > 1 ? std::strtod(argv[1], nullptr) : 5);
  TestArena test("lanes", {64, 3000, 4096});
  uint32_t index;
  uint64_t epoch;
  CHECK(gft_arena_add_namespace(test.arena, bytes_of("model"), &index) == GFT_OK);
  CHECK(gft_arena_begin_epoch(test.arena, kToken, 0, 0, &epoch) == GFT_OK);
  std::vector<pid_t> children;
  for (uint32_t shard = 0; shard < 2; ++shard) {
    children.push_back(in_child([&] { evict(test.path, 100 + shard, end); }));
    children.push_back(in_child([&] {
      for (uint64_t round = 0; now() < end; ++round)
        expect_success(in_child([&] { live_and_die(test.path, shard, round); }));
    }));
  }
  for (pid_t child : children) expect_success(child);
  std::printf("lanes: ok\n");
}
