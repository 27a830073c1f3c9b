// Everything at once from many threads on a small, full arena: claims, evictions, reads, copies, marks, ledger, a takeover.
// Meant for ThreadSanitizer; also checks that no reader is ever handed wrong bytes.
#include <atomic>
#include <functional>
#include <thread>

#include "../../../csrc/support/optimistic.h"
#include "support.h"

static constexpr uint64_t kBytes = 3000, kSlots = 48, kChain = 12, kRanks = 2;
static constexpr const char *kToken = "0123456789abcdef";
static std::atomic<bool> over{false};
static std::atomic<uint64_t> right{0}, refused{0};

static std::string name(uint64_t shard, uint64_t chain, uint64_t position) {
  return std::to_string(shard) + "/" + std::to_string(chain) + "/" + std::to_string(position);
}

static void claim_and_seal(gft_writer *writer, uint64_t shard, uint64_t rounds) {
  for (uint64_t chain = 0; chain < rounds; ++chain)
    for (uint64_t i = 0; i < kChain; ++i) {
      std::string hash = name(shard, 1000 + chain, i), parent = i ? name(shard, 1000 + chain, i - 1) : "";
      gft_claim *claim = nullptr;
      gft_status status = gft_writer_claim(writer, bytes_of(hash), i ? bytes_of(parent) : no_parent(), i, &claim);
      if (status == GFT_OK) {
        uint64_t slot, address;
        gft_claim_info(claim, &slot, &address);
        fill_payload(hash, reinterpret_cast<uint8_t *>(address), kBytes);
        status = gft_claim_seal(claim);
        gft_claim_free(claim);
      }
      CHECK(status == GFT_OK || status == GFT_PRESENT || status == GFT_NO_PARENT || status == GFT_FULL ||
            status == GFT_FENCED);
      if (status == GFT_NO_PARENT || status == GFT_FULL) break;
      gft_bytes mark = bytes_of(hash);
      (void)gft_writer_release(writer, &mark, 1);
    }
}

static void copy_both_ways(gft_writer *writer, uint64_t shard, uint64_t rounds) {
  std::vector<uint8_t> memory(kBytes * kChain * 2);
  gft_region region{reinterpret_cast<uint64_t>(memory.data()), kBytes, kBytes, kChain * 2};
  gft_engine *engine = nullptr;
  CHECK(gft_engine_create(writer, &region, 1, 2, &engine) == GFT_OK);
  for (uint64_t chain = 0; chain < rounds; ++chain) {
    std::vector<std::string> names;
    std::vector<gft_block> out, in;
    for (uint64_t i = 0; i < kChain; ++i) names.push_back(name(shard, chain, i));
    for (uint64_t i = 0; i < kChain; ++i) {
      fill_payload(names[i], memory.data() + i * kBytes, kBytes);
      out.push_back({i, bytes_of(names[i]), i ? bytes_of(names[i - 1]) : no_parent(), i});
      in.push_back({i + kChain, out.back().hash, out.back().parent, i});
    }
    CHECK(gft_engine_store(engine, 1, out.data(), out.size()) == GFT_OK);
    std::vector<gft_bytes> hashes;
    for (const auto &text : names) hashes.push_back(bytes_of(text));
    CHECK(gft_engine_mark(engine, hashes.data(), hashes.size(), GFT_RELEASE) == GFT_OK);
    if (chain % 5 == 4) {
      int64_t id = 1;
      CHECK(gft_engine_cancel(engine, &id, 1) == GFT_OK);
    }
    int done = 0;
    CHECK(gft_engine_wait(engine, 120, &done) == GFT_OK && done);
    CHECK(gft_engine_load(engine, 2, in.data(), in.size()) == GFT_OK);
    CHECK(gft_engine_wait(engine, 120, &done) == GFT_OK && done);
    struct Found {
      std::vector<gft_status> load;
    } found;
    CHECK(gft_engine_poll(
              engine,
              [](void *context, const gft_job_result *job) {
                if (job->job_id == 2) static_cast<Found *>(context)->load.assign(job->statuses, job->statuses + job->count);
              },
              &found) == GFT_OK);
    for (uint64_t i = 0; i < found.load.size(); ++i) {
      if (found.load[i] == GFT_OK) CHECK(is_payload(names[i], memory.data() + (i + kChain) * kBytes, kBytes));
      (found.load[i] == GFT_OK ? right : refused).fetch_add(1);
    }
  }
  int done = 0;
  CHECK(gft_engine_close(engine, 60, &done) == GFT_OK && done);
  gft_engine_free(engine);
}

static void read_along(gft_arena *arena, gft_writer *writer, uint64_t shard) {
  Random random{shard};
  std::vector<uint8_t> copy(kBytes);
  while (!over.load()) {
    std::string hash = name(shard, random.below(2) ? random.below(20) : 1000 + random.below(20), 0);
    gft_read *read = nullptr;
    if (gft_writer_find(writer, bytes_of(hash), no_parent(), &read) == GFT_OK) {
      uint64_t slot, address, bytes;
      gft_read_info(read, &slot, &address, &bytes);
      if (gft_read_verify(read) == GFT_OK) {
        {
          gft::OptimisticRead checked_below;
          std::memcpy(copy.data(), reinterpret_cast<const void *>(address), bytes);
        }
        if (gft_read_recheck(read) == GFT_OK) {
          CHECK(is_payload(hash, copy.data(), bytes));
          right.fetch_add(1);
        }
      }
      gft_read_free(read);
    }
    uint32_t shards = static_cast<uint32_t>(shard);
    gft_bytes hashes = bytes_of(hash);
    gft_prefix prefix;
    CHECK(gft_arena_usable_prefix(arena, 0, &shards, 1, &hashes, 1, 99, &prefix) == GFT_OK);
    gft_counts counts;
    CHECK(gft_arena_counts(arena, &counts) == GFT_OK);
    CHECK(counts.empty + counts.writing + counts.sealed == kSlots);
    const char *text = "";
    CHECK(gft_arena_verify(arena, random.below(kSlots), &text) == GFT_OK);
    CHECK(std::strcmp(text, "digest") != 0 && std::strcmp(text, "seal") != 0);
    uint64_t count = 0;
    gft_status status =
        gft_arena_read_ledger(arena, [](void *n, uint32_t, gft_bytes) { ++*static_cast<uint64_t *>(n); }, &count, &text);
    CHECK(status == GFT_OK || status == GFT_CHANGED);
  }
}

static void append(gft_arena *arena, uint64_t rounds) {
  gft_ledger *ledger = nullptr;
  CHECK(gft_arena_open_ledger(arena, 0, &ledger) == GFT_OK);
  for (uint64_t i = 0; i < rounds; ++i) {
    CHECK(gft_ledger_append(ledger, 1, bytes_of(name(i, i, i))) == GFT_OK);
    if (i % 20 == 19) {
      CHECK(gft_ledger_begin_compaction(ledger) == GFT_OK);
      CHECK(gft_ledger_append(ledger, 2, bytes_of("kept")) == GFT_OK);
      CHECK(gft_ledger_commit_compaction(ledger) == GFT_OK);
    }
  }
  gft_ledger_free(ledger);
}

int main(int argc, char **argv) {
  uint64_t rounds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 40;
  TestArena test("threads", {kBytes, kSlots, 16384});
  auto *token = reinterpret_cast<const uint8_t *>(kToken);
  uint32_t index;
  uint64_t epoch;
  CHECK(gft_arena_add_namespace(test.arena, bytes_of("model"), &index) == GFT_OK);
  CHECK(gft_arena_begin_epoch(test.arena, token, 0, 0, &epoch) == GFT_OK);
  gft_writer *writers[kRanks];
  gft_arena *views[kRanks];  // the second rank has a mapping of its own, as another process would
  for (uint64_t rank = 0; rank < kRanks; ++rank) {
    CHECK(gft_arena_open(test.path.c_str(), 0, &views[rank]) == GFT_OK);
    CHECK(gft_arena_attach(views[rank], static_cast<uint32_t>(rank), token, 0, 0, &writers[rank]) == GFT_OK);
  }
  std::vector<std::thread> work, readers;
  for (uint64_t rank = 0; rank < kRanks; ++rank) {
    work.emplace_back(claim_and_seal, writers[rank], rank, rounds);
    work.emplace_back(copy_both_ways, writers[rank], rank, rounds);
    readers.emplace_back(read_along, views[1 - rank], writers[rank], rank);
  }
  work.emplace_back(append, test.arena, rounds * 20);
  for (auto &thread : work) thread.join();
  over.store(true);
  for (auto &thread : readers) thread.join();

  // The next engine takes over while the old writers still exist.
  const auto *next = reinterpret_cast<const uint8_t *>("fedcba9876543210");
  CHECK(gft_arena_begin_epoch(test.arena, next, 0, 0, &epoch) == GFT_BUSY);
  CHECK(gft_arena_begin_epoch(test.arena, next, 1, 0, &epoch) == GFT_OK && epoch == 2);
  std::thread stale(claim_and_seal, writers[0], 0, 2);
  gft_writer *fresh = nullptr;
  CHECK(gft_arena_attach(test.arena, 0, next, 0, 0, &fresh) == GFT_OK);
  copy_both_ways(fresh, 0, 3);
  stale.join();
  gft_writer_free(fresh);
  for (uint64_t rank = 0; rank < kRanks; ++rank) {
    gft_writer_free(writers[rank]);
    gft_arena_free(views[rank]);
  }
  CHECK(right.load() > 0);
  std::printf("threads: ok, %llu reads right, %llu refused\n", (unsigned long long)right.load(),
              (unsigned long long)refused.load());
}
