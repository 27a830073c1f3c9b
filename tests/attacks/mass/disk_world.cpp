// Building the log, putting its files back, and the judge. Everything goes through the door; the places of records are found
// by their magics, as csrc/disk/README.md gives them.
#include "disk_world.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

namespace mass {
namespace {

namespace fs = std::filesystem;

Id id_of(const uint8_t *bytes) {
  Id out;
  std::memcpy(out.data(), bytes, 16);
  return out;
}

gft_disk_options options() {
  gft_disk_options out;
  gft_disk_defaults(&out);
  out.segment_bytes = 256 << 10;
  out.staging_bytes = 4 << 20;
  out.window_ms = 1;
  out.direct = 0;
  return out;
}

double compressed(gft_disk *log) {
  double out = 0;
  CHECK(gft_disk_get_stats(
            log,
            [](void *to, const gft_disk_stats *stats) {
              for (size_t i = 0; i < stats->count; ++i)
                if (std::strcmp(gft_disk_number_name(i), "compressed") == 0) *static_cast<double *>(to) = stats->numbers[i];
            },
            &out) == GFT_OK);
  return out;
}

void close(gft_disk *log) {
  int done = 0;
  CHECK(gft_disk_close(log, 20, &done) == GFT_OK && done);
  gft_disk_free(log);
}

}  // namespace

DiskWorld::DiskWorld() {
  folder_ = (access("/dev/shm", W_OK) == 0 ? "/dev/shm/gft-disk-" : "/tmp/gft-disk-") + std::to_string(getpid());
  std::string other = folder_ + "-other";
  fs::remove_all(folder_);
  fs::remove_all(other);
  fill(folder_, 1);
  earlier = read_files(folder_);
  fill_all(folder_);
  fill(other, 1);
  fill_all(other);
  foreign = read_files(other);
  fs::remove_all(other);
  for (auto &[name, data] : read_files(folder_)) files[name] = {data, data};
  find_records();
  CHECK(records.size() >= truth_.size() && commits.size() >= 2);
  Random random{0};
  (void)judge(random);
  untouched_ = seen_;
  restore();
}

DiskWorld::~DiskWorld() {
  if (reader_) gft_disk_free(reader_);
  fs::remove_all(folder_);
}

gft_disk *DiskWorld::open(bool read_only) const {
  gft_disk_options with = options();
  gft_disk *log = nullptr;
  (void)gft_disk_open(folder_.c_str(), &with, read_only, &log);
  return log;
}

void DiskWorld::append_chain(gft_disk *log, const std::string &model, uint64_t blocks, int version, bool packs) {
  Id name_space;
  CHECK(gft_disk_add_namespace(log, bytes_of(model), name_space.data()) == GFT_OK);
  Id parent = name_space;
  for (uint64_t i = 0; i < blocks; ++i) {
    Sealed block{};
    std::string hash = "block " + std::to_string(i);
    auto &payload = block.payload;
    payload.resize(i % 3 == 2 ? 20000 : packs ? 9000 : 5000);
    fill_payload(model + hash + std::to_string(version), payload.data(), payload.size());
    if (packs) std::fill(payload.begin() + static_cast<ptrdiff_t>(payload.size() / 4), payload.end(), uint8_t{7});
    gft_disk_key &key = block.key;
    std::memcpy(key.name_space, name_space.data(), 16);
    std::memcpy(key.parent_link, parent.data(), 16);
    key.position = i;
    key.epoch = static_cast<uint64_t>(version);
    key.payload_bytes = payload.size();
    key.hash_bytes = static_cast<uint32_t>(hash.size());
    std::memcpy(key.hash, hash.data(), hash.size());
    gft_disk_seal(&key, payload.data());
    parent = id_of(key.link);
    CHECK(gft_disk_append(log, &key, payload.data(), i + 1, 20) == GFT_OK);
    truth_[parent] = block;
  }
  int done = 0;
  CHECK(gft_disk_flush(log, 20, &done) == GFT_OK && done);
}

void DiskWorld::fill(const std::string &folder, int version) {
  gft_disk_options with = options();
  gft_disk *log = nullptr;
  CHECK(gft_disk_open(folder.c_str(), &with, 0, &log) == GFT_OK);
  append_chain(log, "model A", 6, version, false);
  append_chain(log, "model B", 3, version, false);
  close(log);
}

// The first term writes the blocks; the second finds their segment at its end and compresses it.
void DiskWorld::fill_packed(const std::string &folder, uint32_t codec) {
  constexpr double kBlocks = 4;
  gft_disk_options with = options();
  gft_disk *log = nullptr;
  CHECK(gft_disk_open(folder.c_str(), &with, 0, &log) == GFT_OK);
  double before = compressed(log);
  append_chain(log, std::string("model ") + static_cast<char>('B' + codec), static_cast<uint64_t>(kBlocks), 2, true);
  close(log);
  with.compress = codec;
  with.idle_ms = 0;
  CHECK(gft_disk_open(folder.c_str(), &with, 0, &log) == GFT_OK);
  for (double until = seconds() + 60; compressed(log) < before + kBlocks; std::this_thread::yield()) CHECK(seconds() < until);
  close(log);
}

void DiskWorld::fill_all(const std::string &folder) {
  fill(folder, 2);
  for (uint32_t codec : {1, 2})
    if (std::strcmp(gft_disk_codec_version(codec), "absent") != 0) fill_packed(folder, codec);
}

std::map<std::string, std::vector<uint8_t>> DiskWorld::read_files(const std::string &folder) {
  std::map<std::string, std::vector<uint8_t>> out;
  for (const auto &entry : fs::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    out[entry.path().filename()].assign(std::istreambuf_iterator<char>(file), {});
  }
  return out;
}

void DiskWorld::find_records() {
  for (const auto &[name, file] : files) {
    if (!name.starts_with("seg-")) continue;
    for (uint64_t at = kDiskPage; at + kDiskPage <= file.sound.size(); at += kDiskPage) {
      const uint8_t *page = file.sound.data() + at;
      if (std::memcmp(page, "GFTCOMIT", 8) == 0) commits.push_back({name, at});
      if (std::memcmp(page, "GFTRECRD", 8) != 0) continue;
      uint64_t stored;
      uint16_t kind, codec;
      std::memcpy(&stored, page + 136, 8);
      std::memcpy(&kind, page + 12, 2);
      std::memcpy(&codec, page + 14, 2);
      records.push_back({name, at, stored, kind == 1, codec});
      at += (stored + kDiskPage - 1) / kDiskPage * kDiskPage;
    }
  }
}

std::vector<uint8_t> &DiskWorld::bytes(const std::string &name) {
  files[name].dirty = true;
  return files[name].now;
}

void DiskWorld::remove(const std::string &name) { files[name].dirty = files[name].removed = true; }

void DiskWorld::add(const std::string &name, std::vector<uint8_t> data) {
  if (!files.contains(name)) extra_.push_back(name);
  files[name].now = std::move(data);
  files[name].dirty = true;
  files[name].removed = false;
}

void DiskWorld::write() {
  for (auto &[name, file] : files) {
    if (!file.dirty) continue;
    std::string path = folder_ + "/" + name;
    // In place where it was there, as a damaged disk would: a reader that has it open sees the change.
    if (file.removed) {
      unlink(path.c_str());
      continue;
    }
    std::fstream out(path, std::ios::in | std::ios::out | std::ios::binary);
    if (!out.is_open()) out.open(path, std::ios::out | std::ios::binary);
    out.write(reinterpret_cast<const char *>(file.now.data()), static_cast<std::streamsize>(file.now.size()));
    out.close();
    CHECK(truncate(path.c_str(), static_cast<off_t>(file.now.size())) == 0 && chmod(path.c_str(), 0600) == 0);
  }
}

void DiskWorld::restore() {
  if (reader_) gft_disk_free(reader_);
  reader_ = nullptr;
  if (write_too)
    for (const auto &entry : fs::directory_iterator(folder_)) {
      std::string name = entry.path().filename();
      if (!files.contains(name) || files[name].sound.empty()) fs::remove(entry.path());
      files[name].dirty = true;
    }
  for (const std::string &name : extra_) {
    unlink((folder_ + "/" + name).c_str());
    files.erase(name);
  }
  extra_.clear();
  std::erase_if(files, [](const auto &each) { return each.second.sound.empty(); });
  for (auto &[name, file] : files) {
    if (write_too) file.dirty = true;
    if (file.dirty) file.now = file.sound;
    file.removed = false;
  }
  write();
  for (auto &[name, file] : files) file.dirty = false;
  write_too = false;
  if (++restored_ % 2) reader_ = open(true);
}

std::string DiskWorld::any(Random &random, const char *prefix) const {
  std::vector<std::string> names;
  for (const auto &[name, file] : files)
    if (name.starts_with(prefix)) names.push_back(name);
  return names.empty() ? "" : names[random.below(names.size())];
}

// ---- the judge ----

void DiskWorld::judge_entry(const gft_disk_entry &entry, bool listed) {
  auto there = truth_.find(id_of(entry.key.link));
  // What was never sealed may be listed (a header is all that was looked at), but never found under a sealed block's link.
  if (there == truth_.end()) return saw(listed ? 99 : 98);
  const gft_disk_key &key = there->second.key;
  if (std::memcmp(key.name_space, entry.key.name_space, 16) != 0 || key.shard != entry.key.shard ||
      key.position != entry.key.position || key.epoch != entry.key.epoch || key.hash_bytes != entry.key.hash_bytes ||
      std::memcmp(key.hash, entry.key.hash, key.hash_bytes) != 0 || std::memcmp(key.digest, entry.key.digest, 16) != 0)
    accepted("an entry that bears another block's link");
}

void DiskWorld::judge_reads(gft_disk *log, Random &random) {
  std::vector<gft_disk_entry> entries;
  auto collect = [](void *out, const gft_disk_entry *entry) {
    static_cast<std::vector<gft_disk_entry> *>(out)->push_back(*entry);
  };
  saw(gft_disk_entries(log, collect, &entries));
  saw(entries.size());
  for (const auto &[link, block] : truth_) {
    std::vector<gft_disk_entry> found;
    gft_bytes hash{block.key.hash, block.key.hash_bytes};
    (void)gft_disk_find(log, block.key.name_space, 0, hash, static_cast<int64_t>(block.key.position), collect, &found);
    saw(found.size());
    for (const gft_disk_entry &entry : found) {
      judge_entry(entry, false);
      if (std::memcmp(entry.key.name_space, block.key.name_space, 16) != 0 || entry.key.position != block.key.position ||
          entry.key.hash_bytes != hash.size || std::memcmp(entry.key.hash, hash.data, hash.size) != 0)
        accepted("find: another block than was asked for");
    }
  }
  std::vector<std::vector<uint8_t>> memory(entries.size() * 2);
  std::vector<std::array<gft_disk_range, 3>> ranges(entries.size() * 2);
  std::vector<gft_disk_read> reads;
  for (size_t i = 0; i < entries.size(); ++i) {
    judge_entry(entries[i], true);
    uint64_t size = entries[i].key.payload_bytes;
    if (size > (1 << 20)) continue;  // a lie: nothing that large was written
    memory[2 * i].resize(size);
    memory[2 * i + 1].resize(size);
    ranges[2 * i][0] = {0, size, memory[2 * i].data()};
    reads.push_back({&entries[i], ranges[2 * i].data(), 1, GFT_INTERNAL});
    for (gft_disk_range &range : ranges[2 * i + 1]) {  // small enough to be read in parts
      uint64_t from = random.below(size), bytes = 1 + random.below(std::min<uint64_t>(size - from, 900));
      range = {from, bytes, memory[2 * i + 1].data() + from};
    }
    reads.push_back({&entries[i], ranges[2 * i + 1].data(), 3, GFT_INTERNAL});
  }
  (void)gft_disk_read_many(log, reads.data(), reads.size(), 20, nullptr, nullptr);
  for (const gft_disk_read &read : reads) {
    saw(read.status);
    if (read.status == GFT_TIMED_OUT) give_up("HANG of a read");
    if (read.status != GFT_OK) continue;
    auto there = truth_.find(id_of(read.entry->key.link));
    if (there == truth_.end()) {
      accepted("a read of a block that was never sealed");
      continue;
    }
    const auto &right = there->second.payload;
    for (size_t i = 0; i < read.range_count; ++i) {
      const gft_disk_range &range = read.ranges[i];
      if (range.from + range.bytes > right.size() || std::memcmp(range.to, right.data() + range.from, range.bytes) != 0)
        accepted(read.range_count == 1 ? "a whole read" : "a read in parts");
    }
  }
}

End DiskWorld::judge(Random &random) {
  write();
  seen_ = 0;
  if (reader_) {  // it opened the sound log: what it knows must not mislead it either
    judge_reads(reader_, random);
    (void)gft_disk_refresh(reader_);
    judge_reads(reader_, random);
    seen_ = 0;
  }
  gft_disk *log = open(true);
  saw(log != nullptr);
  if (log) {
    judge_reads(log, random);
    gft_disk_free(log);
  }
  uint64_t seen = seen_;
  if (write_too) {
    gft_disk *writer = open(false);
    if (writer) {
      judge_reads(writer, random);
      Id name_space;
      if (gft_disk_add_namespace(writer, bytes_of("model A"), name_space.data()) == GFT_OK)
        for (const auto &[link, block] : truth_)  // what was lost is stored again
          if (std::memcmp(block.key.name_space, name_space.data(), 16) == 0)
            (void)gft_disk_append(writer, &block.key, block.payload.data(), 1, 5);
      int done = 0;
      (void)gft_disk_flush(writer, 10, &done);
      judge_reads(writer, random);
      (void)gft_disk_close(writer, 10, &done);
      gft_disk_free(writer);
    }
  }
  return seen == untouched_ ? End::unharmed : End::noticed;
}

}  // namespace mass
