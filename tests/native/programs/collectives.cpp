// The simulated NCCL from three threads, each a rank: collectives and rings of messages until one of them revokes in the midst of a call,
// survivors that shrink, and shrinks that an abort ends. The library is linked in, so that sanitizers see all of it.
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "nccl_abi.h"

extern "C" {
Result ncclGetUniqueId(UniqueId *);
Result ncclCommInitRankConfig(void **, int, UniqueId, int, const Config *);
Result ncclCommShrink(void *, int *, int, void **, const Config *, int);
Result ncclCommRevoke(void *, int);
Result ncclCommAbort(void *);
Result ncclCommGetAsyncError(void *, Result *);
Result ncclAllReduce(const void *, void *, size_t, int, int, void *, void *);
Result ncclSend(const void *, size_t, int, int, void *, void *);
Result ncclRecv(void *, size_t, int, int, void *, void *);
Result ncclGroupStart();
Result ncclGroupEnd();
int simulatedNcclDone(const void *, uint64_t *);
}

namespace {

constexpr int kRanks = 3;
const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(100);

void check(bool good, const char *what) {
  if (good) return;
  std::fprintf(stderr, "collectives: %s\n", what);
  std::abort();
}

void in_time() {
  check(std::chrono::steady_clock::now() < deadline, "not in time");
  std::this_thread::yield();
}

void settle(void *comm) {
  Result state = kInProgress;
  while (state == kInProgress) {
    check(ncclCommGetAsyncError(comm, &state) == kSuccess, "no state");
    if (state == kInProgress) in_time();
  }
  check(state == kSuccess, "a communicator with an error");
}

struct Round {
  UniqueId id;
  int number;
  std::barrier<> together{kRanks};
  std::atomic<bool> told{false};
  std::atomic<int> whole{0}, cut{0};
};

// Until a call was cut short; true sums before that.
void serve(Round &round, int rank, void *comm, void *stream, std::vector<float> &values) {
  std::vector<float> other(values.size());
  int stop = 10 + (round.number * 7 + rank * 3) % 9;
  for (int turn = 0;; turn++) {
    for (float &value : values) value = 1;
    ncclGroupStart();
    ncclAllReduce(values.data(), values.data(), values.size(), kFloat, kSum, comm, stream);
    ncclSend(values.data(), 100, kFloat, (rank + 1) % kRanks, comm, stream);
    ncclRecv(other.data(), 100, kFloat, (rank + kRanks - 1) % kRanks, comm, stream);
    Result put = ncclGroupEnd();
    check(put == kSuccess || put == kInProgress, "a group was refused");
    settle(comm);
    uint64_t mark = 0;
    simulatedNcclDone(stream, &mark);
    while (!simulatedNcclDone(stream, &mark)) {
      if (turn >= stop || round.told) {
        round.told = true;
        ncclCommRevoke(comm, 0);
        check(simulatedNcclDone(stream, &mark), "a revoke leaves a call");
        round.cut++;
        return;
      }
      in_time();
    }
    check(values.front() == kRanks && values.back() == kRanks && values[values.size() / 2] == kRanks, "a wrong sum");
    round.whole++;
  }
}

void live(Round &round, int rank) {
  Config config{sizeof(Config), kConfigMagic, 21800, 0};
  void *comm = nullptr, *stream = reinterpret_cast<void *>(static_cast<uintptr_t>(rank + 1));
  check(ncclCommInitRankConfig(&comm, kRanks, round.id, rank, &config) == kInProgress, "no beginning");
  settle(comm);
  std::vector<float> values(50000 + static_cast<size_t>(round.number) % 7 * 1000);
  serve(round, rank, comm, stream, values);
  round.together.arrive_and_wait();
  if (rank == kRanks - 1) {
    ncclCommAbort(comm);
    return;
  }
  int gone = kRanks - 1;
  void *smaller = nullptr;
  check(ncclCommShrink(comm, &gone, 1, &smaller, &config, kShrinkAbort) == kInProgress, "no shrink");
  auto handle = [&] { return __atomic_load_n(&smaller, __ATOMIC_ACQUIRE); };
  if (round.number % 4 == 3) {
    ncclCommAbort(comm);
    if (handle()) ncclCommAbort(handle());
    return;
  }
  while (!handle()) in_time();
  settle(handle());
  ncclCommAbort(comm);
  for (float &value : values) value = 2;
  ncclAllReduce(values.data(), values.data(), values.size(), kFloat, kSum, handle(), stream);
  uint64_t mark = 0;
  simulatedNcclDone(stream, &mark);
  while (!simulatedNcclDone(stream, &mark)) in_time();
  check(values[5] == 2 * (kRanks - 1), "a wrong sum of the survivors");
  ncclCommAbort(handle());
}

}  // namespace

int main(int count, char **words) {
  int rounds = count > 1 ? std::atoi(words[1]) : 40, whole = 0, cut = 0;
  for (int number = 0; number < rounds; number++) {
    Round round{.id = {}, .number = number};
    check(ncclGetUniqueId(&round.id) == kSuccess, "no id");
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < kRanks; rank++) ranks.emplace_back(live, std::ref(round), rank);
    for (std::thread &rank : ranks) rank.join();
    whole += round.whole, cut += round.cut;
  }
  std::printf("collectives: ok, %d whole, %d cut short\n", whole, cut);
}
