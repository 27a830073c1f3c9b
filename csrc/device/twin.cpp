// The twin's state: faults on request, memory, registrations, and streams that run on threads of their own.
// The table's functions (twin_table.cpp) are thin callers of what is here.
#include "twin.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "../support/fail.h"

namespace gft::device {
namespace {

using Seconds = std::chrono::duration<double>;

// Twins are never freed: work of a lost device may still hold them.
struct All {
  std::mutex mutex;
  std::vector<Twin *> twins;
};
All &all() {
  static All *only = new All;
  return *only;
}

void pause(double seconds) {
  if (seconds > 0) std::this_thread::sleep_for(Seconds(std::min(seconds, 60.0)));
}

}  // namespace

Twin &Twin::make(const gft_twin_options &options) {
  if (!(options.gb_per_s > 0) || !(options.call_seconds >= 0) || !(options.work_seconds >= 0) || options.version < 11040)
    fail(GFT_INVALID, "a twin of %g GB/s, %g s per call, %g s of latency, version %d: the first must be above zero, the times "
         "not below, the version at least 11040",
         options.gb_per_s, options.call_seconds, options.work_seconds, options.version);
  std::lock_guard lock(all().mutex);
  auto *twin = new Twin(static_cast<Ordinal>(all().twins.size()), options);
  twin->random_ = options.seed;
  all().twins.push_back(twin);
  return *twin;
}

Twin *Twin::find(Ordinal ordinal) {
  std::lock_guard lock(all().mutex);
  return ordinal >= 0 && static_cast<size_t>(ordinal) < all().twins.size() ? all().twins[static_cast<size_t>(ordinal)] : nullptr;
}

std::vector<Twin *> &Twin::stack() {
  thread_local std::vector<Twin *> contexts;
  return contexts;
}

Twin *Twin::current() { return stack().empty() ? nullptr : stack().back(); }

gft_twin_options Twin::options() {
  std::lock_guard lock(mutex_);
  return options_;
}

void Twin::set(const gft_twin_options &options) {
  std::lock_guard lock(mutex_);
  options_ = options;
  since_ = calls_.load();
  ++generation_;
  released_.notify_all();
}

Result Twin::enter() {
  std::unique_lock lock(mutex_);
  int64_t number = static_cast<int64_t>(++calls_ - since_);
  const gft_twin_options now = options_;
  if (now.block_at && number == now.block_at) {
    uint64_t generation = generation_;
    released_.wait(lock, [&] { return generation_ != generation; });
  }
  lock.unlock();
  pause(now.call_seconds);
  if (now.lose_at && number >= now.lose_at) lost_ = true;
  if (lost_) return kLaunchFailed;
  if (now.fail_at && number == now.fail_at) return now.fail_with ? now.fail_with : kUnknown;
  return kSuccess;
}

Result Twin::allocate(Address *out, size_t bytes) {
  if (bytes == 0) return kInvalidValue;
  // Never zeros, as on a device: what nobody wrote must not look like anything.
  auto owned = std::make_unique<uint8_t[]>(bytes + 256);
  std::memset(owned.get(), 0xcd, bytes + 256);
  uint8_t *host = owned.get() + (-reinterpret_cast<uint64_t>(owned.get()) % 256);
  std::lock_guard lock(mutex_);
  *out = reinterpret_cast<Address>(host) | kTwinTag;
  memory_[*out] = {bytes, std::move(owned), host};
  return kSuccess;
}

Result Twin::free(Address address) {
  std::lock_guard lock(mutex_);
  return memory_.erase(address) ? kSuccess : kInvalidValue;
}

void Twin::adopt(Address address, size_t bytes) {
  std::lock_guard lock(mutex_);
  memory_[address] = {bytes, nullptr, reinterpret_cast<uint8_t *>(address)};
}

uint8_t *Twin::resolve(Address address, size_t bytes) {
  std::lock_guard lock(mutex_);
  auto after = memory_.upper_bound(address);
  if (after == memory_.begin()) return nullptr;
  auto &[base, memory] = *std::prev(after);
  return address - base <= memory.bytes && bytes <= memory.bytes - (address - base) ? memory.host + (address - base) : nullptr;
}

Result Twin::register_host(uint8_t *address, size_t bytes) {
  std::lock_guard lock(mutex_);
  uint64_t total = bytes;
  for (auto &[base, size] : registered_) {
    if (address < base + size && base < address + bytes) return 712;  // already registered
    total += size;
  }
  if (bytes == 0) return kInvalidValue;
  if (total > options_.register_bytes) return 2;  // out of memory
  registered_[address] = bytes;
  return kSuccess;
}

Result Twin::unregister_host(uint8_t *address) {
  std::lock_guard lock(mutex_);
  return registered_.erase(address) ? kSuccess : 713;  // not registered
}

Twin::Host Twin::host_kind(const void *address, size_t bytes) {
  std::lock_guard lock(mutex_);
  auto *from = static_cast<uint8_t *>(const_cast<void *>(address));
  auto after = registered_.upper_bound(from);
  if (after == registered_.begin()) return Host::pageable;
  auto &[base, size] = *std::prev(after);
  if (from >= base + size) return Host::pageable;
  return from + bytes <= base + size ? Host::pinned : Host::torn;
}

uint64_t Twin::registered_bytes() {
  std::lock_guard lock(mutex_);
  uint64_t total = 0;
  for (auto &[base, size] : registered_) total += size;
  return total;
}

double Twin::transfer_seconds(size_t bytes) {
  std::lock_guard lock(mutex_);
  random_ = random_ * 6364136223846793005u + 1442695040888963407u;
  double part = static_cast<double>(random_ >> 40) / static_cast<double>(1 << 24);
  return options_.work_seconds * (1 + part) + static_cast<double>(bytes) / (options_.gb_per_s * 1e9);
}

void Twin::transfer(uint8_t *to, const uint8_t *from, size_t bytes, bool out) {
  std::memcpy(to, from, bytes);
  int64_t every = options().flip_every;
  if (out && every > 0 && ++copies_ % static_cast<uint64_t>(every) == 0 && bytes) to[bytes / 2] ^= 0x10;
}

TwinStream *Twin::stream() {
  auto *made = new TwinStream;  // leaked when the device is lost
  made->twin = this;
  made->thread = std::thread([this, made] { run(made); });
  return made;
}

void Twin::end(TwinStream *stream) {
  {
    std::lock_guard lock(stream->mutex);
    stream->stop = true;
    stream->changed.notify_all();
  }
  stream->thread.join();
  delete stream;
}

Result Twin::enqueue(TwinStream *stream, double seconds, std::function<void()> act, std::function<bool()> may_start) {
  std::lock_guard lock(stream->mutex);
  stream->queue.push_back({seconds, std::move(act), std::move(may_start)});
  stream->changed.notify_all();
  return kSuccess;
}

void Twin::run(TwinStream *stream) {
  std::unique_lock lock(stream->mutex);
  while (true) {
    stream->changed.wait(lock, [&] { return stream->stop || !stream->queue.empty(); });
    // As a destroyed stream does: what was queued is still carried out.
    if (stream->queue.empty()) return;
    auto work = std::move(stream->queue.front());
    stream->queue.pop_front();
    lock.unlock();
    while (work.may_start && !work.may_start() && !lost_ && !stream->stop) pause(20e-6);
    pause(work.seconds);
    if (!lost_) work.act();
    lock.lock();
  }
}

}  // namespace gft::device
