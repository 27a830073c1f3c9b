// The heartbeat file: made whole under another name and linked into place, mode 0600, its space allocated before it is mapped.
// A file of another owner, size or version is refused; its words are untrusted all the same.
#include "beats.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "../support/fail.h"
#include "../support/quiet.h"
#include "process.h"
#include "record.h"

namespace gft::watch {
namespace {

constexpr uint64_t kMagic = 0x3174616562746667;  // "gftbeat1"

struct alignas(64) Header {
  uint64_t magic;
  uint32_t slot_bytes, ranks;
};

size_t file_bytes(uint32_t ranks) { return sizeof(Header) + size_t{ranks} * sizeof(Slot); }

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor &) = delete;
  Descriptor &operator=(const Descriptor &) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

void make(const std::string &path, uint32_t ranks) {
  std::string draft = path + "." + std::to_string(getpid()) + ".new";
  unlink(draft.c_str());
  Descriptor file(::open(draft.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.get() < 0)
    fail(GFT_IO, "cannot make the heartbeat file %s: %s; its folder must exist and be writable", draft.c_str(), strerror(errno));
  int error = posix_fallocate(file.get(), 0, static_cast<off_t>(file_bytes(ranks)));
  Header header{kMagic, sizeof(Slot), ranks};
  bool written = !error && pwrite(file.get(), &header, sizeof header, 0) == sizeof header;
  bool linked = written && (link(draft.c_str(), path.c_str()) == 0 || errno == EEXIST);
  int why = error ? error : errno;
  unlink(draft.c_str());
  if (!linked)
    fail(why == ENOSPC ? GFT_NO_SPACE : GFT_IO, "cannot make the heartbeat file %s of %zu bytes: %s; free space there",
         path.c_str(), file_bytes(ranks), strerror(why));
}

}  // namespace

Beats::Beats(std::string path, void *memory, size_t bytes, uint32_t ranks)
    : path_(std::move(path)), memory_(memory), bytes_(bytes), ranks_(ranks) {}

Beats::~Beats() { munmap(memory_, bytes_); }

std::shared_ptr<Beats> Beats::open(const std::string &path, uint32_t ranks) {
  if (ranks < 1 || ranks > kMaxRanks)
    fail(GFT_INVALID, "a heartbeat file for %u ranks; it must be between 1 and %u", ranks, kMaxRanks);
  int found = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (found < 0 && errno == ENOENT) {
    SignalsBlocked quiet;
    make(path, ranks);
    found = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  }
  Descriptor file(found);
  if (found < 0) fail(GFT_IO, "cannot open the heartbeat file %s: %s", path.c_str(), strerror(errno));
  struct stat about;
  Header header{};
  if (fstat(found, &about) != 0 || !S_ISREG(about.st_mode) || about.st_uid != geteuid() || (about.st_mode & 077))
    fail(GFT_DAMAGED, "%s is no heartbeat file of ours: it must be a plain file of this user with mode 0600; remove it",
         path.c_str());
  if (pread(found, &header, sizeof header, 0) != sizeof header || header.magic != kMagic ||
      header.slot_bytes != sizeof(Slot) || header.ranks < 1 || header.ranks > kMaxRanks ||
      static_cast<uint64_t>(about.st_size) < file_bytes(header.ranks))
    fail(GFT_DAMAGED, "%s is no heartbeat file of this version; remove it", path.c_str());
  if (header.ranks < ranks)
    fail(GFT_MISMATCH, "the heartbeat file %s has room for %u ranks, %u are wanted; remove it or name another", path.c_str(),
         header.ranks, ranks);
  size_t bytes = file_bytes(header.ranks);
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, found, 0);
  if (memory == MAP_FAILED) fail(GFT_IO, "cannot map the heartbeat file %s: %s", path.c_str(), strerror(errno));
  return std::shared_ptr<Beats>(new Beats(path, memory, bytes, header.ranks));
}

Slot &Beats::slot(uint32_t rank) {
  if (rank >= ranks_) fail(GFT_INVALID, "rank %u of the heartbeat file %s; it has %u", rank, path_.c_str(), ranks_);
  return reinterpret_cast<Slot *>(static_cast<char *>(memory_) + sizeof(Header))[rank];
}

Beat::Beat(std::shared_ptr<Beats> beats, uint32_t rank, double tick_seconds)
    : beats_(std::move(beats)),
      slot_(beats_->slot(rank)),
      pid_(static_cast<uint32_t>(getpid())),
      tick_seconds_(tick_seconds) {
  if (!(tick_seconds >= 0.001 && tick_seconds <= 10))
    fail(GFT_INVALID, "a tick of %g s; it must be between 0.001 and 10", tick_seconds);
  // A judge must not mix the former process's words with ours: nothing counts before the pid is there.
  slot_.phase.store(static_cast<uint32_t>(Phase::kEmpty), std::memory_order_release);
  slot_.step.store(0, std::memory_order_relaxed);
  slot_.device_step.store(0, std::memory_order_relaxed);
  slot_.thread.store(static_cast<uint32_t>(gettid()), std::memory_order_relaxed);
  slot_.started.store(process_state(pid_, 0).started, std::memory_order_relaxed);
  slot_.tick_ns.store(now_ns(), std::memory_order_relaxed);
  slot_.began_ns.store(now_ns(), std::memory_order_relaxed);
  slot_.pid.store(pid_, std::memory_order_release);
  slot_.phase.store(static_cast<uint32_t>(Phase::kIdle), std::memory_order_release);
  ticker_.start([this] { tick(); });
}

Beat::~Beat() {
  if (ticker_.ours()) leave();
  ticker_.end();
}

void Beat::tick() {
  struct pollfd waiting = {ticker_.ending(), POLLIN, 0};
  const int pause = std::max(1, static_cast<int>(std::lround(tick_seconds_ * 1000)));
  do {
    if (ours()) slot_.tick_ns.store(now_ns(), std::memory_order_relaxed);
  } while (poll(&waiting, 1, pause) <= 0);
}

bool Beat::ours() const noexcept {
  return ticker_.ours() && slot_.pid.load(std::memory_order_relaxed) == pid_;
}

uint64_t Beat::steps() const noexcept { return slot_.step.load(std::memory_order_relaxed); }

void Beat::begin(uint32_t kind, uint64_t step) noexcept {
  if (!ours()) return;
  slot_.kind.store(kind < kClasses ? kind : kClasses - 1, std::memory_order_relaxed);
  slot_.began_ns.store(now_ns(), std::memory_order_relaxed);
  if (step)
    slot_.step.store(step, std::memory_order_relaxed);
  else
    slot_.step.fetch_add(1, std::memory_order_relaxed);
  slot_.phase.store(static_cast<uint32_t>(Phase::kStep), std::memory_order_release);
}

void Beat::end() noexcept {
  if (!ours() || slot_.phase.load(std::memory_order_relaxed) != static_cast<uint32_t>(Phase::kStep)) return;
  slot_.history.learn(slot_.kind.load(std::memory_order_relaxed), now_ns() - slot_.began_ns.load(std::memory_order_relaxed));
  idle();
}

void Beat::busy(double limit_seconds) noexcept {
  if (!ours()) return;
  double bounded = std::isfinite(limit_seconds) ? std::clamp(limit_seconds, 0.0, 1e6) : 1e6;
  slot_.limit_ns.store(static_cast<int64_t>(bounded * 1e9), std::memory_order_relaxed);
  slot_.began_ns.store(now_ns(), std::memory_order_relaxed);
  slot_.phase.store(static_cast<uint32_t>(Phase::kBusy), std::memory_order_release);
}

void Beat::idle() noexcept {
  if (!ours()) return;
  slot_.began_ns.store(now_ns(), std::memory_order_relaxed);
  slot_.phase.store(static_cast<uint32_t>(Phase::kIdle), std::memory_order_release);
}

void Beat::leave() noexcept {
  if (ours()) slot_.phase.store(static_cast<uint32_t>(Phase::kLeft), std::memory_order_release);
}

}  // namespace gft::watch
