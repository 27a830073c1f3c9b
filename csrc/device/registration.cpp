// One thread per arena and device: populate, register, wait for the end, unregister.
// A driver that blocks in here blocks this thread alone; whoever ends the engine has a deadline.
#include "registration.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "numa.h"

namespace gft::device {
namespace {
constexpr uint64_t kPage = 4096;
constexpr int kTries = 3;
constexpr uint64_t kPopulate = uint64_t{256} << 20;  // at once, so that the end is heard in between
}  // namespace

Registration::Registration(std::shared_ptr<Device> device, std::shared_ptr<Writer> writer, uint64_t chunk_bytes)
    : device_(std::move(device)),
      writer_(std::move(writer)),
      base_(writer_->core().payload(0)),
      bytes_(writer_->core().geometry().slots * writer_->core().geometry().stride),
      chunk_((chunk_bytes + kPage - 1) / kPage * kPage) {}

std::shared_ptr<Registration> Registration::start(std::shared_ptr<Device> device, std::shared_ptr<Writer> writer,
                                                  uint64_t chunk_bytes) {
  if (chunk_bytes == 0 || chunk_bytes > kLargestChunk)
    fail(GFT_INVALID, "registration in chunks of %llu bytes; it must be between 1 and %llu (64 GiB), because one call for more fails",
         (unsigned long long)chunk_bytes, (unsigned long long)kLargestChunk);
  auto made = std::make_shared<Registration>(std::move(device), std::move(writer), chunk_bytes);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread(run, made).detach();
  } catch (const std::exception &why) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    fail(GFT_INTERNAL, "cannot start the thread that registers the arena: %s; check the process limit (ulimit -u)", why.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return made;
}

void Registration::run(std::shared_ptr<Registration> self) {
  self->attempt([&] { self->enter(); });
  self->done_ = true;
  {
    std::unique_lock lock(self->mutex_);
    self->changed_.wait(lock, [&] { return self->stop_; });
  }
  // A call may fail by chance; of what stays registered the mapping must not go.
  for (int tried = 0; tried < kTries && !self->attempt([&] { self->leave(); }); ++tried) {
  }
  std::lock_guard lock(self->mutex_);
  self->ended_ = true;
  self->clean_ = self->chunks_ == 0;
  self->changed_.notify_all();
}

template <typename Step>
bool Registration::attempt(Step step) noexcept {
  try {
    std::optional<Current> current;
    // A lost device has no context that could be made current; it is asked to let go all the same.
    if (!device_->lost()) current.emplace(*device_);
    step();
    return true;
  } catch (...) {
    failed_ = true;
    return false;
  }
}

void Registration::enter() {
  auto stopped = [this] {
    std::lock_guard lock(mutex_);
    return stop_;
  };
  const auto started = Clock::now();
  run_on_node(device_->node);
  huge_ = advise_huge_pages(base_, bytes_);
  for (uint64_t from = 0; from < bytes_ && !failed_; from += chunk_) {
    uint64_t bytes = std::min(chunk_, bytes_ - from);
    writer_->core().check_alive();
    for (uint64_t at = 0; at < bytes && !stopped(); at += kPopulate) populate(base_ + from + at, std::min(kPopulate, bytes - at));
    if (stopped()) return;
    // Not through `ask`: gigabytes take seconds, and a call that is away for long is no sign of a wedged device here.
    if (device_->lost() || device_->driver.host_register(base_ + from, bytes, kRegisterPortable))
      failed_ = true;  // what follows would fail as well (a limit on locked memory, most often)
    else
      ++chunks_;
    seconds_ = std::chrono::duration<double>(Clock::now() - started).count();
  }
}

void Registration::leave() {
  if (auto last = std::exchange(last_, nullptr)) last();
  // Newest first, so that `chunks_` always counts the registered ones. A device that lost its context refuses; its
  // pages stay locked until the process ends, and nothing is written to them any more.
  while (chunks_ > 0) {
    Result result = device_->driver.host_unregister(base_ + (chunks_ - 1) * chunk_);
    if (result && !is_fatal(result) && !device_->lost()) device_->refuse("cuMemHostUnregister", result);
    --chunks_;
  }
}

bool Registration::covers(const uint8_t *from, uint64_t bytes) const {
  uint64_t end = chunks_.load() * chunk_;
  return from >= base_ && static_cast<uint64_t>(from - base_) + bytes <= std::min(end, bytes_);
}

Registration::Progress Registration::progress() const {
  Progress out;
  out.bytes = bytes_;
  out.registered = std::min(chunks_.load() * chunk_, bytes_);
  out.seconds = seconds_, out.done = done_, out.failed = failed_, out.huge_pages = huge_;
  return out;
}

bool Registration::finish(double seconds, std::function<void()> last) {
  std::unique_lock lock(mutex_);
  if (!stop_) last_ = std::move(last);
  stop_ = true;
  changed_.notify_all();
  if (!changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return ended_; })) return false;
  return clean_;
}

}  // namespace gft::device
