// A whole life of an arena, then that of one whose bytes are changed at random between the calls: meant for ASan and UBSan.
// No answer is wrong here except wrong bytes, a crash, or an access that the sanitizer or the guard pages see.
#include <fcntl.h>
#include <sys/mman.h>

#include "support.h"

static constexpr uint64_t kBytes = 500, kSlots = 20, kChain = 6;
static constexpr const char *kToken = "0123456789abcdef";

static std::string name(uint64_t i) { return "block " + std::to_string(i); }

struct Engine {
  std::vector<uint8_t> memory = std::vector<uint8_t>(kBytes * kChain);
  gft_engine *engine = nullptr;

  explicit Engine(gft_writer *writer) {
    gft_region regions[2] = {{reinterpret_cast<uint64_t>(memory.data()), kBytes, 100, kChain},
                             {reinterpret_cast<uint64_t>(memory.data()) + 100, kBytes, kBytes - 100, kChain}};
    CHECK(gft_engine_create(writer, regions, 2, 2, &engine) == GFT_OK);
  }
  ~Engine() { gft_engine_free(engine); }

  std::vector<gft_status> run(bool load) {
    std::vector<std::string> names;
    for (uint64_t i = 0; i < kChain; ++i) names.push_back(name(i));
    std::vector<gft_block> blocks;
    for (uint64_t i = 0; i < kChain; ++i)
      blocks.push_back({i, bytes_of(names[i]), i ? bytes_of(names[i - 1]) : no_parent(), i});
    CHECK((load ? gft_engine_load : gft_engine_store)(engine, 1, blocks.data(), blocks.size()) == GFT_OK);
    int done = 0;
    CHECK(gft_engine_wait(engine, 60, &done) == GFT_OK && done);
    std::vector<gft_status> statuses;
    CHECK(gft_engine_poll(
              engine,
              [](void *out, const gft_job_result *job) {
                static_cast<std::vector<gft_status> *>(out)->assign(job->statuses, job->statuses + job->count);
              },
              &statuses) == GFT_OK);
    return statuses;
  }

  void fill() {
    for (uint64_t i = 0; i < kChain; ++i) fill_payload(name(i), memory.data() + i * kBytes, kBytes);
  }
  uint64_t load_and_check() {
    std::fill(memory.begin(), memory.end(), uint8_t{0});
    auto statuses = run(true);
    uint64_t right = 0;
    for (uint64_t i = 0; i < statuses.size(); ++i)
      if (statuses[i] == GFT_OK) {
        CHECK(is_payload(name(i), memory.data() + i * kBytes, kBytes));
        ++right;
      }
    return right;
  }
};

static void look_at_everything(gft_arena *arena) {
  gft_counts counts;
  (void)gft_arena_counts(arena, &counts);
  (void)gft_arena_scan(arena, [](void *, const gft_slot_info *info) { CHECK(info->hash_bytes <= 64); }, nullptr);
  const char *text = "";
  for (uint64_t slot = 0; slot <= kSlots; ++slot) (void)gft_arena_verify(arena, slot, &text);
  (void)gft_arena_read_ledger(arena, [](void *, uint32_t, gft_bytes) {}, nullptr, &text);
  uint32_t count = 0;
  uint8_t record[4096];
  size_t size = 0;
  if (gft_arena_namespace_count(arena, &count) == GFT_OK)
    for (uint32_t i = 0; i < count; ++i) (void)gft_arena_namespace(arena, i, record, &size);
  std::string names[3] = {name(0), name(1), name(2)};
  gft_bytes hashes[3] = {bytes_of(names[0]), bytes_of(names[1]), bytes_of(names[2])};
  uint32_t shard = 0;
  gft_prefix prefix;
  (void)gft_arena_usable_prefix(arena, 0, &shard, 1, hashes, 3, 9, &prefix);
}

static void go_on_working(gft_arena *arena, gft_writer *writer, Random &random) {
  for (int i = 0; i < 4; ++i) {
    gft_claim *claim = nullptr;
    std::string fresh = "fresh " + std::to_string(random());
    if (gft_writer_claim(writer, bytes_of(fresh), no_parent(), 0, &claim) != GFT_OK) continue;
    (void)gft_claim_seal(claim);
    gft_claim_free(claim);
  }
  std::string first = name(0);
  gft_bytes hash = bytes_of(first);
  (void)gft_writer_hold(writer, &hash, 1);
  gft_read *read = nullptr;
  if (gft_writer_find(writer, hash, no_parent(), &read) == GFT_OK) {
    (void)gft_read_verify(read);
    gft_read_free(read);
  }
  uint64_t epoch = 0, token[2] = {random(), random()};
  (void)gft_arena_begin_epoch(arena, reinterpret_cast<uint8_t *>(token), 1, 0, &epoch);
  gft_writer *other = nullptr;
  if (gft_arena_attach(arena, 3, reinterpret_cast<uint8_t *>(token), 0, 0, &other) == GFT_OK) gft_writer_free(other);
  gft_ledger *ledger = nullptr;
  if (gft_arena_open_ledger(arena, 1, &ledger) == GFT_OK) {
    (void)gft_ledger_append(ledger, 1, hash);
    (void)gft_ledger_begin_compaction(ledger);
    (void)gft_ledger_append(ledger, 2, hash);
    (void)gft_ledger_commit_compaction(ledger);
    gft_ledger_free(ledger);
  }
}

int main(int argc, char **argv) {
  uint64_t cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 2000;
  Random random{argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1};
  std::printf("hostile: %llu cases, seed %llu\n", (unsigned long long)cases, (unsigned long long)random.state);

  TestArena test("hostile", {kBytes, kSlots, 8192});
  auto *token = reinterpret_cast<const uint8_t *>(kToken);
  uint32_t index = 9;
  uint64_t epoch = 0;
  CHECK(gft_arena_add_namespace(test.arena, bytes_of("model"), &index) == GFT_OK && index == 0);
  CHECK(gft_arena_begin_epoch(test.arena, token, 0, 0, &epoch) == GFT_OK && epoch == 1);
  gft_writer *writer = nullptr;
  CHECK(gft_arena_attach(test.arena, 0, token, 0, 0, &writer) == GFT_OK);
  gft_ledger *ledger = nullptr;
  CHECK(gft_arena_open_ledger(test.arena, 0, &ledger) == GFT_OK);
  for (uint32_t i = 0; i < 50; ++i) CHECK(gft_ledger_append(ledger, i, bytes_of(name(i))) == GFT_OK);
  {
    Engine engine(writer);
    engine.fill();
    for (gft_status status : engine.run(false)) CHECK(status == GFT_OK);
    CHECK(engine.load_and_check() == kChain);

    int file = open(test.path.c_str(), O_RDWR | O_CLOEXEC);
    gft_arena_info info;
    CHECK(file >= 0 && gft_arena_info_get(test.arena, &info) == GFT_OK);
    auto *bytes = static_cast<uint8_t *>(mmap(nullptr, info.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    CHECK(bytes != MAP_FAILED);
    std::vector<uint8_t> sound(bytes, bytes + info.file_bytes);
    // Half of the changes go where numbers lie, half anywhere; half are hostile words, half flipped bits.
    uint64_t metadata = info.file_bytes - kSlots * 4096, loaded = 0;
    for (uint64_t i = 0; i < cases; ++i) {
      for (uint64_t changes = 1 + random.below(6); changes > 0; --changes) {
        uint64_t at = random.below(random.below(2) ? metadata : info.file_bytes) / 8 * 8;
        uint64_t word = random.below(2) ? random() : (uint64_t{1} << random.below(64)) - random.below(3);
        if (random.below(2))
          bytes[at + random.below(8)] ^= static_cast<uint8_t>(1u << random.below(8));
        else
          std::memcpy(bytes + at, &word, 8);
      }
      look_at_everything(test.arena);
      loaded += engine.load_and_check();
      gft_arena *again = nullptr;
      if (gft_arena_open(test.path.c_str(), 1, &again) == GFT_OK) {
        look_at_everything(again);
        gft_arena_free(again);
      }
      if (i % 8 == 0) go_on_working(test.arena, writer, random);
      std::memcpy(bytes, sound.data(), sound.size());
    }
    CHECK(loaded > cases);  // most changes hit nothing that a load needs
    munmap(bytes, info.file_bytes);
    close(file);
  }
  gft_ledger_free(ledger);
  gft_writer_free(writer);
  std::printf("hostile: ok\n");
}
