// A disk log under everything at once: appends, polls, finds, reads, drops, collection and compression from many threads of the
// writer, by io_uring where there is one, and a second handle that follows it by threads as a reading process would. For
// ThreadSanitizer; also checks every byte that is handed out.
#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>

#include "../../../csrc/gft_disk.h"
#include "support.h"

namespace {

constexpr uint64_t kNames = 400, kLargest = 24'000, kSegment = 256 << 10;
constexpr int kAppenders = 2, kReaders = 2;
std::atomic<bool> over{false}, appended{false};
std::atomic<uint64_t> accepted{0}, settled{0}, stored{0}, right{0}, gone{0};

// Everything about a block follows from its number.
struct Block {
  std::string name;
  std::vector<uint8_t> payload;
  gft_disk_key key{};

  Block(uint64_t number, const uint8_t (&name_space)[16]) : name("block " + std::to_string(number)) {
    payload.resize(1 + number * 7919 % kLargest);
    fill_payload(name, payload.data(), payload.size());
    if (number % 4) std::fill(payload.begin() + static_cast<ptrdiff_t>(payload.size() / 3), payload.end(), 0x5a);  // packs well
    std::memcpy(key.name_space, name_space, 16);
    std::memcpy(key.parent_link, name_space, 16);
    key.epoch = 1;
    key.payload_bytes = payload.size();
    key.hash_bytes = static_cast<uint32_t>(name.size());
    std::memcpy(key.hash, name.data(), name.size());
    gft_disk_seal(&key, payload.data());
  }
};

using Blocks = std::vector<Block>;

bool one_of(gft_status status, std::initializer_list<gft_status> allowed) {
  for (gft_status each : allowed)
    if (status == each) return true;
  std::fprintf(stderr, "unexpected status %s\n", gft_status_name(status));
  return false;
}

void append(gft_disk *log, const Blocks &blocks, uint64_t seed) {
  Random random{seed};
  while (!appended.load()) {
    const Block &block = blocks[random.below(kNames)];
    gft_status status = gft_disk_append(log, &block.key, block.payload.data(), 1, 5);
    CHECK(one_of(status, {GFT_OK, GFT_PRESENT, GFT_NO_SPACE, GFT_TIMED_OUT}));
    if (status == GFT_OK) accepted.fetch_add(1);
    if (status == GFT_PRESENT || status == GFT_NO_SPACE) std::this_thread::yield();
  }
}

void poll(gft_disk *log) {
  CHECK(gft_disk_poll(
            log,
            [](void *, uint64_t ticket, gft_status status) {
              CHECK(ticket == 1 && one_of(status, {GFT_OK, GFT_NO_SPACE}));
              settled.fetch_add(1);
              if (status == GFT_OK) stored.fetch_add(1);
            },
            nullptr) == GFT_OK);
}

void read_one(gft_disk *log, const Block &block, Random &random) {
  std::vector<gft_disk_entry> entries;
  CHECK(gft_disk_find(
            log, block.key.name_space, 0, bytes_of(block.name), 0,
            [](void *to, const gft_disk_entry *entry) {
              static_cast<std::vector<gft_disk_entry> *>(to)->push_back(*entry);
            },
            &entries) == GFT_OK);
  for (const auto &entry : entries) {
    uint64_t size = block.payload.size(), from = random.below(2) ? 0 : random.below(size);
    std::vector<uint8_t> got(size - from);
    gft_disk_range range{from, got.size(), got.data()};
    gft_disk_read read{&entry, &range, 1, GFT_INTERNAL};
    CHECK(gft_disk_read_many(log, &read, 1, 60, nullptr, nullptr) == GFT_OK);
    CHECK(one_of(read.status, {GFT_OK, GFT_NOT_FOUND}));
    if (read.status == GFT_OK) CHECK(std::memcmp(got.data(), block.payload.data() + from, got.size()) == 0);
    (read.status == GFT_OK ? right : gone).fetch_add(1);
    if (!appended.load() && random.below(50) == 0) CHECK(gft_disk_drop(log, &entry) == GFT_OK);
  }
}

// Everything there is, in one call that several threads share.
void read_all(gft_disk *log, const Blocks &blocks) {
  std::vector<gft_disk_entry> entries;
  CHECK(gft_disk_entries(
            log, [](void *to, const gft_disk_entry *entry) { static_cast<std::vector<gft_disk_entry> *>(to)->push_back(*entry); },
            &entries) == GFT_OK);
  std::vector<std::vector<uint8_t>> got(entries.size());
  std::vector<gft_disk_range> ranges(entries.size());
  std::vector<gft_disk_read> reads(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    got[i].resize(entries[i].key.payload_bytes);
    ranges[i] = {0, got[i].size(), got[i].data()};
    reads[i] = {&entries[i], &ranges[i], 1, GFT_INTERNAL};
  }
  CHECK(gft_disk_read_many(log, reads.data(), reads.size(), 60, nullptr, nullptr) == GFT_OK);
  for (size_t i = 0; i < reads.size(); ++i) {
    CHECK(one_of(reads[i].status, {GFT_OK, GFT_NOT_FOUND}));
    std::string name(reinterpret_cast<const char *>(entries[i].key.hash), entries[i].key.hash_bytes);
    if (reads[i].status == GFT_OK) CHECK(got[i] == blocks[std::stoull(name.substr(6))].payload);
    (reads[i].status == GFT_OK ? right : gone).fetch_add(1);
  }
}

void read_along(gft_disk *log, const Blocks &blocks, uint64_t seed, bool follows) {
  Random random{seed};
  while (!over.load()) {
    if (follows) CHECK(gft_disk_refresh(log) == GFT_OK);
    const Block &block = blocks[random.below(kNames)];
    int what = static_cast<int>(random.below(3));
    CHECK(gft_disk_mark(log, &block.key.link, 1, what == 2 ? 0 : 1) == GFT_OK);
    read_one(log, block, random);
    if (random.below(30) == 0) read_all(log, blocks);
    if (what != 2) CHECK(gft_disk_mark(log, &block.key.link, 1, 2) == GFT_OK);
    CHECK(gft_disk_get_stats(log, [](void *, const gft_disk_stats *) {}, nullptr) == GFT_OK);
    CHECK(gft_disk_entries(log, [](void *, const gft_disk_entry *) {}, nullptr) == GFT_OK);
  }
}

double number_of(gft_disk *log, const char *name) {
  struct Wanted {
    const char *name;
    double value = -1;
  } wanted{name};
  CHECK(gft_disk_get_stats(
            log,
            [](void *to, const gft_disk_stats *stats) {
              auto &wanted = *static_cast<Wanted *>(to);
              for (size_t i = 0; i < stats->count; ++i)
                if (!std::strcmp(gft_disk_number_name(i), wanted.name)) wanted.value = stats->numbers[i];
            },
            &wanted) == GFT_OK);
  CHECK(wanted.value >= 0);
  return wanted.value;
}

// One of the codecs that this build has; 0 when it has none.
uint32_t a_codec(uint64_t seed) {
  uint32_t first = 1 + seed % 2;
  for (uint32_t codec : {first, 3 - first})
    if (std::strcmp(gft_disk_codec_version(codec), "absent")) return codec;
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  auto seconds = std::chrono::seconds(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 5);
  uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  std::printf("disk: seed %llu\n", (unsigned long long)seed);
  std::string folder = (std::filesystem::temp_directory_path() / ("gft-disk-" + std::to_string(getpid()))).string();
  gft_disk_options options;
  gft_disk_defaults(&options);
  options.segment_bytes = kSegment;
  options.cap_bytes = 10 * kSegment;  // less than all blocks need: collection never rests
  options.staging_bytes = 128 << 10;
  options.group_bytes = 64 << 10;
  options.read_threads = 3;
  options.window_ms = 2;
  options.idle_ms = 1;
  options.compress = a_codec(seed);
  gft_disk *log = nullptr, *second = nullptr;
  CHECK(gft_disk_open(folder.c_str(), &options, 0, &log) == GFT_OK);
  uint8_t name_space[16];
  CHECK(gft_disk_add_namespace(log, bytes_of("a model"), name_space) == GFT_OK);
  options.backend = 2;
  CHECK(gft_disk_open(folder.c_str(), &options, 1, &second) == GFT_OK);
  Blocks blocks;
  for (uint64_t i = 0; i < kNames; ++i) blocks.emplace_back(i, name_space);

  std::vector<std::thread> threads;
  for (int i = 0; i < kAppenders; ++i) threads.emplace_back(append, log, std::cref(blocks), seed++);
  for (int i = 0; i < kReaders; ++i) threads.emplace_back(read_along, log, std::cref(blocks), seed++, false);
  for (int i = 0; i < kReaders; ++i) threads.emplace_back(read_along, second, std::cref(blocks), seed++, true);
  auto until = std::chrono::steady_clock::now() + seconds;
  while (std::chrono::steady_clock::now() < until) {
    int done = 0;
    CHECK(gft_disk_flush(log, 0.01, &done) == GFT_OK);
    poll(log);
  }
  appended.store(true);
  int done = 0;
  CHECK(gft_disk_flush(log, 60, &done) == GFT_OK && done);
  // Compression begins when appends rest; reads go on under it, and over what it leaves.
  for (until = std::chrono::steady_clock::now() + std::chrono::seconds(60); options.compress;) {
    if (number_of(log, "compressed") > 0) break;
    CHECK(std::chrono::steady_clock::now() < until);
    std::this_thread::yield();
  }
  for (uint64_t more = right.load() + 200; right.load() < more;) std::this_thread::yield();
  over.store(true);
  for (auto &thread : threads) thread.join();
  poll(log);
  CHECK(settled.load() == accepted.load() && stored.load() > 0 && right.load() > 0);
  double collected = number_of(log, "collected"), compressed = number_of(log, "compressed");
  CHECK(collected > 0);
  CHECK(gft_disk_close(log, 60, &done) == GFT_OK && done);
  gft_disk_free(log);
  gft_disk_free(second);

  // What the next process finds holds.
  CHECK(gft_disk_open(folder.c_str(), &options, 0, &log) == GFT_OK);
  uint64_t before = right.load();
  Random random{seed};
  for (const Block &block : blocks) read_one(log, block, random);
  CHECK(right.load() > before);
  gft_disk_free(log);
  std::filesystem::remove_all(folder);
  std::printf("disk: ok, %llu stored, %llu read right, %llu gone, %.0f segments collected, %.0f records compressed by %s\n",
              (unsigned long long)stored.load(), (unsigned long long)right.load(), (unsigned long long)gone.load(), collected,
              compressed, options.compress == 1 ? "zstd" : options.compress == 2 ? "lz4" : "nothing");
}
