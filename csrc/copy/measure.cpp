// One warm-up and a few timed transfers. Pieces lie apart on the device and side by side on the host, as a block's do.
#include "measure.h"

#include <algorithm>
#include <vector>

#include "berth.h"

namespace gft {

using namespace device;

namespace {

constexpr uint64_t kMostBytes = uint64_t{256} << 20;
constexpr double kBudget = 0.1;  // seconds that one question may take, beyond its first transfer
constexpr int kRuns = 5;

// Device and pinned host memory for as long as the question is being answered.
struct Buffers {
  Buffers(Device &device, size_t device_bytes, size_t host_bytes) : of(device) {
    of.must("cuMemAlloc", [&] { return of.driver.memory_allocate(&there, device_bytes); });
    of.must("cuMemHostAlloc", [&] { return of.driver.host_allocate(&here, host_bytes, kHostAllocPortable); });
  }
  ~Buffers() {
    if (there) of.ask([&] { return of.driver.memory_free(there); });
    if (here) of.ask([&] { return of.driver.host_free(here); });
  }
  Device &of;
  Address there = 0;
  void *here = nullptr;
};

}  // namespace

double measure(const std::shared_ptr<Device> &device, const std::string &way, bool in, uint64_t bytes, uint64_t count,
               unsigned thread_blocks) {
  bool kernel = way == "kernel", batch = way == "batch";
  if (!kernel && !batch && way != "plain")
    fail(GFT_INVALID, "a way of copying named \"%s\"; it must be plain, batch or kernel", way.c_str());
  if (bytes == 0 || bytes % kAlignment || count == 0 || count > 65536 || bytes > kMostBytes / count || thread_blocks == 0)
    fail(GFT_INVALID, "a transfer of %llu pieces of %llu bytes; pieces are multiples of %llu, at most 65536, and %llu bytes together",
         (unsigned long long)count, (unsigned long long)bytes, (unsigned long long)kAlignment, (unsigned long long)kMostBytes);
  if ((kernel && !device->has_kernels()) || (batch && !device->batches()))
    fail(GFT_NOT_FOUND, "%s cannot copy by %s; see what `dynamo-gpu-ft doctor` says of it", device->name.c_str(), way.c_str());
  Current current(*device);
  Buffers buffers(*device, 2 * bytes * count, bytes * count);
  Berth berth(device, bytes * count, count);
  if (kernel && !berth.ready_for_kernels()) {
    berth.release();
    fail(GFT_NOT_FOUND, "%s has no memory for %llu bytes of staging", device->name.c_str(), (unsigned long long)(bytes * count));
  }
  std::vector<Fragment> fragments;
  for (uint64_t i = 0; i < count; ++i)
    fragments.push_back({buffers.there + 2 * i * bytes, reinterpret_cast<uint64_t>(buffers.here) + i * bytes, bytes, 0, i * bytes});
  PlanRules rules;
  rules.kernels = rules.pack_all = kernel;
  rules.staging_bytes = bytes * count, rules.max_pieces = count;
  Plan plan = make_plan(fragments, rules);
  std::vector<double> took;
  auto began = Clock::now();
  try {
    for (int run = 0; run <= kRuns; ++run) {
      auto started = Clock::now();
      berth.submit(plan, in, way == "plain", thread_blocks, false, device->stream(in));
      auto mark = device->mark(device->stream(in));
      if (!device->wait(*mark, started + std::chrono::seconds(2)))
        fail(GFT_TIMED_OUT, "%s did not copy %llu bytes within two seconds; look at nvidia-smi", device->name.c_str(),
             (unsigned long long)(bytes * count));
      if (run) took.push_back(std::chrono::duration<double>(Clock::now() - started).count());
      if (run && std::chrono::duration<double>(Clock::now() - began).count() > kBudget) break;
    }
  } catch (...) {
    berth.release();
    throw;
  }
  berth.release();
  std::sort(took.begin(), took.end());
  return took[took.size() / 2];
}

}  // namespace gft
