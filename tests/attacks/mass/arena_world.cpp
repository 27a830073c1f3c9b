// Building the world, putting it back, and the judge: every slot, every name, every load, compared byte for byte.
// The judge also folds all answers into one number; a case whose number differs from the untouched one was noticed.
#include "arena_world.h"

#include <unistd.h>

namespace mass {
namespace {

const uint8_t *bytes16(const char *token) { return reinterpret_cast<const uint8_t *>(token); }
std::vector<uint8_t> payload_of(const std::string &name) {
  std::vector<uint8_t> out(kSlotBytes);
  fill_payload(name, out.data(), out.size());
  return out;
}
std::string record_of(const char *prefix, uint64_t i) { return prefix + std::to_string(i) + std::string(i * 5 % 60, 'x'); }

}  // namespace

ArenaWorld::ArenaWorld() {
  path = (access("/dev/shm", W_OK) == 0 ? "/dev/shm/gft-mass-" : "/tmp/gft-mass-") + std::to_string(getpid());
  unlink(path.c_str());
  gft_geometry geometry{kSlotBytes, kSlots, 2 * kHalf};
  CHECK(gft_arena_create(path.c_str(), &geometry, 0, &arena_) == GFT_OK);
  gft_arena_info info;
  CHECK(gft_arena_info_get(arena_, &info) == GFT_OK && info.file_bytes == kFileBytes);
  uint32_t index;
  for (const char *record : {"model A", "model B"})
    CHECK(gft_arena_add_namespace(arena_, bytes_of(record), &index) == GFT_OK);
  descriptor_ = open(path.c_str(), O_RDWR | O_CLOEXEC);
  memory = static_cast<uint8_t *>(mmap(nullptr, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0));
  CHECK(memory != MAP_FAILED);

  attach("the first engine");
  for (size_t chain = 0; chain < kChains; ++chain)
    for (uint64_t i = 0; i < 3; ++i) seal(chain, i, 1);
  CHECK(gft_arena_open_ledger(arena_, 0, &ledger_) == GFT_OK);
  write_ledger(ledger_, 20, "older ");
  gft_ledger_free(ledger_);
  older.assign(memory, memory + kFileBytes);

  attach("the next engine!");
  for (size_t chain = 0; chain < kChains; ++chain) {
    for (uint64_t i = 3; i-- > 0;) {  // what is found bad is dropped, and its slot is the next to be used
      std::string hash = block_name(i), parent = i ? block_name(i - 1) : "";
      gft_read *read = nullptr;
      CHECK(gft_writer_find(attached_[chain].writer, bytes_of(hash), i ? bytes_of(parent) : no_parent(), &read) == GFT_OK);
      uint64_t slot, address, bytes;
      gft_read_info(read, &slot, &address, &bytes);
      std::memset(reinterpret_cast<void *>(address), 0xee, 8);
      CHECK(gft_read_verify(read) == GFT_DIGEST);
      gft_read_free(read);
    }
    for (uint64_t i = 0; i < kChain; ++i) seal(chain, i, 2);
  }
  CHECK(gft_arena_open_ledger(arena_, 0, &ledger_) == GFT_OK);
  CHECK(gft_ledger_begin_compaction(ledger_) == GFT_OK);
  write_ledger(ledger_, kLedgerRecords, "");
  CHECK(gft_ledger_commit_compaction(ledger_) == GFT_OK);
  for (Attached &each : attached_) {
    gft_region region{reinterpret_cast<uint64_t>(each.memory.data()), kSlotBytes, kSlotBytes, kChain};
    CHECK(gft_engine_create(each.writer, &region, 1, 1, &each.engine) == GFT_OK);
  }
  CHECK(gft_arena_scan(
            arena_,
            [](void *out, const gft_slot_info *slot) { static_cast<std::vector<uint64_t> *>(out)->push_back(slot->slot); },
            &used) == GFT_OK);
  CHECK(used.size() == kChains * kChain);
  sound.assign(memory, memory + kFileBytes);
  Random random{0};
  for (int anew = 0; anew < 2; ++anew) {
    look_anew = anew;
    (void)judge(random);
    untouched_[anew] = seen_;
    restore();
  }
}

ArenaWorld::~ArenaWorld() {
  for (Attached &each : attached_) {
    gft_engine_free(each.engine);
    gft_writer_free(each.writer);
  }
  gft_ledger_free(ledger_);
  munmap(memory, kFileBytes);
  close(descriptor_);
  gft_arena_free(arena_);
  unlink(path.c_str());
}

void ArenaWorld::attach(const char *token) {
  uint64_t epoch;
  CHECK(gft_arena_begin_epoch(arena_, bytes16(token), 1, 0, &epoch) == GFT_OK);
  for (size_t i = 0; i < kChains; ++i) {
    if (attached_[i].writer) gft_writer_free(attached_[i].writer);
    CHECK(gft_arena_attach(arena_, kKeys[i].shard, bytes16(token), kKeys[i].name_space, 0, &attached_[i].writer) == GFT_OK);
  }
}

void ArenaWorld::seal(size_t chain, uint64_t position, int version) {
  std::string hash = block_name(position), parent = position ? block_name(position - 1) : "";
  gft_claim *claim = nullptr;
  CHECK(gft_writer_claim(attached_[chain].writer, bytes_of(hash), position ? bytes_of(parent) : no_parent(), position,
                         &claim) == GFT_OK);
  uint64_t slot, address;
  gft_claim_info(claim, &slot, &address);
  auto data = payload_of(truth_name(kKeys[chain], hash, version));
  std::memcpy(reinterpret_cast<void *>(address), data.data(), data.size());
  CHECK(gft_claim_seal(claim) == GFT_OK);
  gft_claim_free(claim);
  truth_[truth_name(kKeys[chain], hash, 0)] = data;
}

void ArenaWorld::write_ledger(gft_ledger *ledger, uint64_t count, const char *prefix) {
  for (uint64_t i = 0; i < count; ++i)
    CHECK(gft_ledger_append(ledger, static_cast<uint32_t>(i % 4), bytes_of(record_of(prefix, i))) == GFT_OK);
}

void ArenaWorld::resize(uint64_t bytes) { CHECK(ftruncate(descriptor_, static_cast<off_t>(bytes)) == 0); }

void ArenaWorld::restore() {
  std::memcpy(memory, sound.data(), kNamespaces + 2 * 4160);
  for (uint64_t at = kNamespaces; at < kIndex - 64; at += 4160)  // of the empty records only the counts are ever written
    std::memcpy(memory + at, sound.data() + at, 64);
  std::memcpy(memory + kIndex, sound.data() + kIndex, kFileBytes - kIndex);
  look_anew = stir_too = false;
  if (stirred_) std::erase_if(truth_, [](const auto &each) { return each.first.find("stirred") != std::string::npos; });
  stirred_ = false;
}

void ArenaWorld::reseal(uint64_t slot) {
  uint8_t *at = memory + header(slot);
  uint8_t link[160] = {}, covered[176 + 24];
  std::memcpy(link, at + 128, 16);       // the parent's link
  std::memcpy(link + 16, at + 160, 16);  // digest
  std::memcpy(link + 32, at + 112, 16);  // namespace
  std::memcpy(link + 48, at + 8, 8);     // epoch
  std::memcpy(link + 56, at + 20, 4);    // shard
  std::memcpy(link + 64, at + 24, 8);    // position
  std::memcpy(link + 72, at + 40, 4);    // bytes of the hash
  std::memcpy(link + 80, at + 48, 64);
  gft_digest(link, 144, at + 144);
  std::memcpy(covered, at, 176);
  std::memcpy(covered + 176, &slot, 8);
  std::memcpy(covered + 184, memory + 64, 16);
  gft_digest(covered, sizeof covered, at + 176);
}

// ---- the judge ----

void ArenaWorld::judge_slots(gft_arena *arena) {
  struct Found {
    std::vector<gft_slot_info> slots;
  } found;
  gft_status status = gft_arena_scan(
      arena, [](void *out, const gft_slot_info *slot) { static_cast<Found *>(out)->slots.push_back(*slot); }, &found);
  saw(status);
  for (const gft_slot_info &slot : found.slots) {
    const char *text = "";
    saw(gft_arena_verify(arena, slot.slot, &text));
    for (const char *c = text; *c; ++c) saw(static_cast<uint64_t>(*c));
    if (std::strcmp(text, "ok") != 0) continue;
    std::string hash(reinterpret_cast<const char *>(slot.block_hash), slot.hash_bytes);
    Chain chain{static_cast<uint32_t>(slot.name_space), static_cast<uint32_t>(slot.shard)};
    auto there = truth_.find(truth_name(chain, hash, 0));
    if (there == truth_.end() || std::memcmp(there->second.data(), memory + payload(slot.slot), kSlotBytes) != 0)
      accepted("verify of a slot");
  }
}

void ArenaWorld::judge_ledger(gft_arena *arena) {
  struct Records {
    std::vector<std::string> all;
  } records;
  const char *end = "";
  saw(gft_arena_read_ledger(
      arena,
      [](void *out, uint32_t kind, gft_bytes bytes) {
        static_cast<Records *>(out)->all.push_back(std::to_string(kind) +
                                                   std::string(reinterpret_cast<const char *>(bytes.data), bytes.size));
      },
      &records, &end));
  bool now = true, then = true;  // a ledger word that points back gives the ledger of before: stale, but whole
  for (uint64_t i = 0; i < records.all.size(); ++i) {
    now &= i < kLedgerRecords && records.all[i] == std::to_string(i % 4) + record_of("", i);
    then &= i < 20 && records.all[i] == std::to_string(i % 4) + record_of("older ", i);
  }
  if (!now && !then) accepted("the ledger");
  saw(records.all.size() * 2 + (std::strcmp(end, "torn") == 0));
}

void ArenaWorld::judge_prefix(gft_arena *arena, size_t chain) {
  std::vector<std::string> names;
  for (uint64_t i = 0; i < kChain; ++i) names.push_back(block_name(i));
  std::vector<gft_bytes> hashes;
  for (const std::string &name : names) hashes.push_back(bytes_of(name));
  gft_prefix prefix{};
  saw(gft_arena_usable_prefix(arena, kKeys[chain].name_space, &kKeys[chain].shard, 1, hashes.data(), kChain, 2, &prefix));
  saw(prefix.blocks * 31 + static_cast<uint64_t>(prefix.reason ? prefix.reason[0] : 0));
}

void ArenaWorld::judge_names(size_t chain) {
  for (uint64_t i = 0; i < kChain; ++i) {
    std::string hash = block_name(i), parent = i ? block_name(i - 1) : "";
    gft_read *read = nullptr;
    gft_status status = gft_writer_find(attached_[chain].writer, bytes_of(hash), i ? bytes_of(parent) : no_parent(), &read);
    saw(status);
    if (status != GFT_OK) continue;
    uint64_t slot, address, bytes;
    gft_read_info(read, &slot, &address, &bytes);
    CHECK(bytes == kSlotBytes && slot < kSlots);
    std::vector<uint8_t> copy(kSlotBytes);
    std::memcpy(copy.data(), reinterpret_cast<const void *>(address), bytes);
    status = gft_read_verify(read);
    saw(status);
    if (status == GFT_OK && copy != truth_.at(truth_name(kKeys[chain], hash, 0))) accepted("find and verify");
    gft_read_free(read);
  }
}

void ArenaWorld::judge_load(size_t chain) {
  Attached &each = attached_[chain];
  std::fill(each.memory.begin(), each.memory.end(), uint8_t{0});
  std::vector<std::string> names;
  for (uint64_t i = 0; i < kChain; ++i) names.push_back(block_name(i));
  std::vector<gft_block> blocks;
  for (uint64_t i = 0; i < kChain; ++i)
    blocks.push_back({i, bytes_of(names[i]), i ? bytes_of(names[i - 1]) : no_parent(), i});
  CHECK(gft_engine_load(each.engine, 1, blocks.data(), blocks.size()) == GFT_OK);
  int done = 0;
  CHECK(gft_engine_wait(each.engine, 20, &done) == GFT_OK);
  if (!done) give_up("HANG of a load");
  std::vector<gft_status> statuses;
  CHECK(gft_engine_poll(
            each.engine,
            [](void *out, const gft_job_result *job) {
              static_cast<std::vector<gft_status> *>(out)->assign(job->statuses, job->statuses + job->count);
            },
            &statuses) == GFT_OK);
  CHECK(statuses.size() == kChain);
  for (uint64_t i = 0; i < kChain; ++i) {
    saw(statuses[i]);
    const auto &right = truth_.at(truth_name(kKeys[chain], names[i], 0));
    if (statuses[i] == GFT_OK && std::memcmp(right.data(), each.memory.data() + i * kSlotBytes, kSlotBytes) != 0)
      accepted("a load");
  }
}

// Work goes on in the damaged arena: evictions, new blocks, epochs, takeovers. Refusals are fine, wrong bytes are not.
void ArenaWorld::stir(Random &random) {
  stirred_ = true;
  for (size_t chain = 0; chain < kChains; ++chain)
    for (int i = 0; i < 5; ++i) {
      std::string hash = "stirred " + std::to_string(i);
      gft_claim *claim = nullptr;
      if (gft_writer_claim(attached_[chain].writer, bytes_of(hash), no_parent(), 0, &claim) != GFT_OK) continue;
      uint64_t slot, address;
      gft_claim_info(claim, &slot, &address);
      auto data = payload_of(truth_name(kKeys[chain], hash, 2));
      std::memcpy(reinterpret_cast<void *>(address), data.data(), data.size());
      truth_[truth_name(kKeys[chain], hash, 0)] = data;
      (void)gft_claim_seal(claim);
      gft_claim_free(claim);
    }
  judge_slots(arena_);
  for (size_t chain = 0; chain < kChains; ++chain) judge_load(chain);
  uint64_t epoch = 0, token[2] = {random(), random()};
  (void)gft_arena_begin_epoch(arena_, reinterpret_cast<uint8_t *>(token), 1, 0, &epoch);
  gft_writer *other = nullptr;
  if (gft_arena_attach(arena_, 9, reinterpret_cast<uint8_t *>(token), 1, 0, &other) == GFT_OK) gft_writer_free(other);
  judge_slots(arena_);
}

End ArenaWorld::judge(Random &random) {
  seen_ = 0;
  gft_counts counts{};
  saw(gft_arena_counts(arena_, &counts));
  saw(counts.sealed * 1000 + counts.held);
  uint64_t epoch = 0;
  saw(gft_arena_epoch(arena_, &epoch));
  saw(epoch);
  for (uint32_t i = 0; i < 2; ++i) {
    uint8_t record[kPage];
    size_t bytes = 0;
    saw(gft_arena_namespace(arena_, i, record, &bytes));
  }
  judge_ledger(arena_);
  bool loads_first = random.below(2);  // what looks first drops what is bad, so that the others do not meet it
  if (loads_first)
    for (size_t chain = 0; chain < kChains; ++chain) judge_load(chain);
  judge_slots(arena_);
  for (size_t chain = 0; chain < kChains; ++chain) {
    judge_prefix(arena_, chain);
    judge_names(chain);
    if (!loads_first) judge_load(chain);
  }
  if (look_anew) {
    gft_arena *anew = nullptr;
    gft_status status = gft_arena_open(path.c_str(), 1, &anew);
    saw(status == GFT_OK ? 0 : status);
    if (status == GFT_OK) {
      gft_arena_info info;
      CHECK(gft_arena_info_get(anew, &info) == GFT_OK);
      // Numbers, checksum and length may all fit and still be another arena than the one the bytes are of.
      if (info.geometry.slot_bytes == kSlotBytes && info.geometry.slots == kSlots) judge_slots(anew), judge_ledger(anew);
      for (size_t chain = 0; chain < kChains; ++chain) judge_prefix(anew, chain);
      gft_arena_free(anew);
    }
  }
  End end = seen_ == untouched_[look_anew] ? End::unharmed : End::noticed;
  if (stir_too || random.below(16) == 0) stir(random);
  return end;
}

}  // namespace mass
