// Carries a plan out: direct copies, then round by round kernel and DMA, in the order of the direction.
// Everything of one batch is on one stream, so a round's staging is free again when the next one begins.
#include "berth.h"

#include <cstring>

namespace gft {

using namespace device;

bool Berth::ready_for_kernels() {
  if (tried_) return staging_ && device_table_ && table_;
  tried_ = true;
  const Driver &driver = device_->driver;
  size_t table_bytes = sizeof(KernelResults) + max_pieces_ * sizeof(PackedPiece);
  void *host = nullptr;
  if (device_->ask([&] { return driver.memory_allocate(&staging_, staging_bytes_); })) staging_ = 0;
  if (device_->ask([&] { return driver.memory_allocate(&device_table_, table_bytes); })) device_table_ = 0;
  if (device_->ask([&] { return driver.host_allocate(&host, table_bytes, kHostAllocPortable); })) host = nullptr;
  table_ = static_cast<uint8_t *>(host);
  return staging_ && device_table_ && table_;
}

uint8_t *Berth::bounce(uint64_t bytes) {
  if (bounce_bytes_ >= bytes) return bounce_;
  if (tried_bounce_) return nullptr;
  tried_bounce_ = true;
  void *host = nullptr;
  if (device_->ask([&] { return device_->driver.host_allocate(&host, bytes, kHostAllocPortable); })) return nullptr;
  bounce_ = static_cast<uint8_t *>(host);
  bounce_bytes_ = bytes;
  return bounce_;
}

void Berth::release() noexcept {
  try {
    if (staging_) device_->ask([&] { return device_->driver.memory_free(staging_); });
    if (device_table_) device_->ask([&] { return device_->driver.memory_free(device_table_); });
    for (uint8_t *host : {table_, bounce_})
      if (host) device_->ask([&] { return device_->driver.host_free(host); });
  } catch (...) {
  }
  staging_ = device_table_ = 0;
  table_ = bounce_ = nullptr;
  bounce_bytes_ = 0;
}

void Berth::launch(bool in, size_t from, size_t count, unsigned thread_blocks, bool digest, Stream stream) {
  Address pieces = device_table_ + sizeof(KernelResults) + from * sizeof(PackedPiece), results = device_table_;
  uint32_t number = static_cast<uint32_t>(count), with_digest = digest;
  uint64_t bytes = staging_bytes_;
  void *parameters[] = {&pieces, &number, &staging_, &bytes, &results, &with_digest};
  device_->must("cuLaunchKernel", [&] {
    return device_->driver.launch(device_->kernel(in), thread_blocks, 1, 1, kThreads, 1, 1, 0, stream, parameters, nullptr);
  });
}

void Berth::submit(const Plan &plan, bool in, bool one_by_one, unsigned thread_blocks, bool digest, Stream stream) {
  std::vector<Device::Copy> copies;
  for (const Direct &direct : plan.direct)
    copies.push_back({direct.device, reinterpret_cast<void *>(direct.host), direct.bytes});
  device_->copy(in, copies, stream, one_by_one);
  if (plan.rounds.empty()) return;
  auto *results = new (table_) KernelResults{};
  auto *pieces = reinterpret_cast<PackedPiece *>(table_ + sizeof(KernelResults));
  size_t count = 0;
  for (const Round &round : plan.rounds)
    for (const Packed &p : round.pieces) pieces[count++] = {p.device, p.offset, p.bytes, p.position / 8, p.owner, 0};
  device_->must("cuMemcpyHtoDAsync", [&] {
    return device_->driver.copy_in(device_table_, table_, sizeof *results + count * sizeof *pieces, stream);
  });
  size_t from = 0;
  for (const Round &round : plan.rounds) {
    copies.clear();
    for (const Run &run : round.runs) copies.push_back({staging_ + run.offset, reinterpret_cast<void *>(run.host), run.bytes});
    if (in) device_->copy(true, copies, stream, one_by_one);
    launch(in, from, round.pieces.size(), thread_blocks, digest, stream);
    if (!in) device_->copy(false, copies, stream, one_by_one);
    from += round.pieces.size();
  }
  device_->must("cuMemcpyDtoHAsync",
                [&] { return device_->driver.copy_out(table_, device_table_, sizeof(KernelResults), stream); });
}

}  // namespace gft
