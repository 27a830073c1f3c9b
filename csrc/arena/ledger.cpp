// The ledger's one live writer: appending, compacting, and taking over from a writer that is stopped but not dead.
// A record becomes readable by the release-store of its commit word; a compaction by that of the ledger word.
#include "ledger.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "ledger_words.h"

namespace gft {
namespace {

Word ledger_word(const Core &core) { return Word(core.control()->ledger_word); }
Word commit_word(uint8_t *at) { return Word(*reinterpret_cast<uint64_t *>(at)); }

uint64_t half_pid(const Core &core, unsigned half) {
  return Word(core.control()->ledger_pid[half]).load(std::memory_order_relaxed);
}

// Who has the lock of a half beside the writer: who noted itself there, or the writer, stopped before it did so in a compaction.
uint64_t holder_beside(const Core &core, unsigned writers) {
  uint64_t noted = half_pid(core, 1 - writers);
  bool there = noted && (kill(static_cast<pid_t>(noted), 0) == 0 || errno == EPERM);
  return there ? noted : half_pid(core, writers);
}

}  // namespace

std::unique_ptr<Ledger> Ledger::open(std::shared_ptr<Core> core, bool takeover) {
  core->check_writable();
  AdminLock admin(*core);
  auto ledger = std::make_unique<Ledger>(core);
  uint64_t packed = ledger_word(*core).load(std::memory_order_acquire);
  LedgerWord word = LedgerWord::of(packed);
  auto own = [&](unsigned number) {
    Half half{number, 0, 0, std::make_unique<LockFile>(core->file().descriptor, core->path())};
    if (!half.lock->try_lock(kLedgerLocks + number)) half.lock.reset();
    return half;
  };
  Half active = own(word.half);
  if (!active.lock) {
    if (!takeover)
      fail(GFT_BUSY, "process %llu writes the ledger of arena %s; end it, or take over",
           (unsigned long long)half_pid(*core, word.half), core->path());
    Half other = own(1 - word.half);
    if (!other.lock)
      fail(GFT_BUSY,
           "process %llu, a writer of the ledger of arena %s, is stopped but alive and could still touch it; end it",
           (unsigned long long)holder_beside(*core, word.half), core->path());
    ledger->take_over(packed, std::move(other));
    return ledger;
  }
  // The former writer is dead: go on where its last whole record ends.
  LedgerContents there = replay_half(*core, word.half, word.generation);
  active.generation = word.generation;
  active.used = there.used;
  if (core->geometry().half_bytes - there.used >= 8)
    commit_word(core->ledger_half(word.half) + there.used).store(0, std::memory_order_release);
  word.fencing = false;
  ledger->word_ = word.packed();
  Word(core->control()->ledger_tail).store(tail_word(word.generation, there.used), std::memory_order_relaxed);
  Word(core->control()->ledger_pid[word.half]).store(static_cast<uint64_t>(getpid()), std::memory_order_relaxed);
  ledger_word(*core).store(ledger->word_, std::memory_order_release);
  ledger->active_ = std::move(active);
  return ledger;
}

void Ledger::take_over(uint64_t packed, Half other) {
  LedgerWord word = LedgerWord::of(packed);
  word.fencing = true;
  // From here on the former writer sees after each append that it must not report success; so every record it did
  // report is found by the replay below.
  if (packed != word.packed() && !ledger_word(*core_).compare_exchange_strong(packed, word.packed()))
    fail(GFT_BUSY, "the ledger of arena %s was compacted by process %llu during the takeover: it is at work; end it first",
         core_->path(), (unsigned long long)half_pid(*core_, word.half));
  std::atomic_thread_fence(std::memory_order_seq_cst);
  LedgerContents there = replay_half(*core_, word.half, word.generation);
  start_half(other, word.generation + 1);
  for (const LedgerRecord &record : there.records) put(other, record.kind, record.payload);
  word_ = LedgerWord{word.generation + 1, false, other.number}.packed();
  Word(core_->control()->ledger_tail).store(tail_word(other.generation, other.used), std::memory_order_relaxed);
  ledger_word(*core_).store(word_, std::memory_order_release);
  active_ = std::move(other);
}

void Ledger::fenced() {
  // Nothing will be written from here any more, so the locks need not keep others waiting.
  active_.lock.reset();
  other_.lock.reset();
  fail(GFT_FENCED, "process %llu took over the ledger of arena %s; stop this one",
       (unsigned long long)half_pid(*core_, LedgerWord::of(ledger_word(*core_).load()).half), core_->path());
}

void Ledger::check() const {
  if (closed_) fail(GFT_CLOSED, "the ledger of arena %s was closed; open it again", core_->path());
}

void Ledger::start_half(Half &half, uint64_t generation) {
  half.generation = generation;
  half.used = 0;
  commit_word(core_->ledger_half(half.number)).store(0, std::memory_order_release);
  Word(core_->control()->ledger_pid[half.number]).store(static_cast<uint64_t>(getpid()), std::memory_order_relaxed);
}

void Ledger::put(Half &half, uint32_t kind, std::span<const uint8_t> payload) {
  const uint64_t capacity = core_->geometry().half_bytes;
  uint64_t bytes = payload.size() <= UINT32_MAX ? record_bytes(static_cast<uint32_t>(payload.size())) : ~uint64_t{0};
  // Eight bytes stay free for the zero that ends the ledger.
  if (bytes > capacity - half.used || capacity - half.used - bytes < 8)
    fail(GFT_FULL,
         "a record of %zu bytes does not fit the ledger of arena %s: %llu of %llu bytes are used; compact it, or "
         "make the arena with a larger ledger",
         payload.size(), core_->path(), (unsigned long long)half.used, (unsigned long long)capacity);
  uint8_t *at = core_->ledger_half(half.number) + half.used;
  RecordHeader header{0, half.generation, static_cast<uint32_t>(payload.size()), kind};
  header.commit = commit_of(header, half.used, payload.data());
  // Relaxed atomics for the words a reader may look at before they count.
  commit_word(at + 8).store(header.generation, std::memory_order_relaxed);
  commit_word(at + 16).store(uint64_t{kind} << 32 | header.bytes, std::memory_order_relaxed);
  if (!payload.empty()) std::memcpy(at + sizeof header, payload.data(), payload.size());
  commit_word(at + bytes).store(0, std::memory_order_relaxed);
  commit_word(at).store(header.commit, std::memory_order_release);
  half.used += bytes;
}

void Ledger::append(uint32_t kind, std::span<const uint8_t> payload) {
  core_->check_alive();
  std::lock_guard lock(mutex_);
  check();
  if (!active_.lock || ledger_word(*core_).load(std::memory_order_acquire) != word_) fenced();
  Half &half = compacting_ ? other_ : active_;
  put(half, kind, payload);
  // Pairs with the fence in take_over: either it finds this record, or we find it fencing.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (ledger_word(*core_).load(std::memory_order_relaxed) != word_) fenced();
  if (!compacting_)
    Word(core_->control()->ledger_tail).store(tail_word(half.generation, half.used), std::memory_order_release);
}

void Ledger::begin_compaction() {
  core_->check_alive();
  std::lock_guard lock(mutex_);
  check();
  if (!active_.lock || ledger_word(*core_).load(std::memory_order_acquire) != word_) fenced();
  Half half{1 - active_.number, 0, 0, nullptr};
  half.lock = compacting_ ? std::move(other_.lock) : std::make_unique<LockFile>(core_->file().descriptor, core_->path());
  if (!compacting_ && !half.lock->try_lock(kLedgerLocks + half.number))
    fail(GFT_BUSY,
         "process %llu, a former writer of the ledger of arena %s, is stopped but alive and could still touch the "
         "other half; end it",
         (unsigned long long)half_pid(*core_, half.number), core_->path());
  start_half(half, active_.generation + 1);
  other_ = std::move(half);
  compacting_ = true;
}

void Ledger::commit_compaction() {
  core_->check_alive();
  std::lock_guard lock(mutex_);
  check();
  if (!compacting_) fail(GFT_INVALID, "no compaction of the ledger was begun; begin one first");
  uint64_t expected = word_, next = LedgerWord{other_.generation, false, other_.number}.packed();
  if (!active_.lock || !ledger_word(*core_).compare_exchange_strong(expected, next)) fenced();
  Word(core_->control()->ledger_tail).store(tail_word(other_.generation, other_.used), std::memory_order_release);
  word_ = next;
  active_ = std::move(other_);  // drops the lock of the old half
  other_ = {};
  compacting_ = false;
}

void Ledger::abort_compaction() {
  core_->check_alive();
  std::lock_guard lock(mutex_);
  check();
  other_ = {};
  compacting_ = false;
}

void Ledger::close() {
  core_->check_alive();
  std::lock_guard lock(mutex_);
  closed_ = true;
  active_ = {};
  other_ = {};
}

void Ledger::usage(uint64_t &used, uint64_t &capacity) {
  std::lock_guard lock(mutex_);
  used = (compacting_ ? other_ : active_).used;
  capacity = core_->geometry().half_bytes;
}

}  // namespace gft
