// Opening, health and the small services of a device: copies, marks, kernels.
// On a lost or wedged device nothing is given back to the driver: asking it could hang, and the process has to end anyway.
#include "device.h"

#include <algorithm>
#include <cstdio>
#include <thread>

#include "kernel.h"
#include "numa.h"

namespace gft::device {

std::shared_ptr<Device> Device::open(const Driver &driver, int ordinal, double timeout) {
  if (!(timeout > 0)) fail(GFT_INVALID, "a device with a deadline of %g seconds; it must be above zero", timeout);
  auto device = std::make_shared<Device>(driver, ordinal, timeout);
  Ordinal found = 0;
  if (Result result = device->ask([&] { return driver.device_get(&found, ordinal); }); result)
    fail(result == kInvalidDevice || result == 201 ? GFT_INVALID : GFT_DEVICE,
         "device %d of %s cannot be opened: %s; look at nvidia-smi -L", ordinal, driver.name.c_str(),
         name_of(driver, result).c_str());
  char text[256] = "";
  device->must("cuDeviceGetName", [&] { return driver.device_name(text, sizeof text, found); });
  text[sizeof text - 1] = 0;
  device->name = text;
  Uuid uuid{};
  device->must("cuDeviceGetUuid", [&] { return driver.device_uuid(&uuid, found); });
  for (unsigned char byte : uuid.bytes) {
    std::snprintf(text, sizeof text, "%02x", byte);
    device->uuid += text;
  }
  auto attribute = [&](int which) {
    int value = 0;
    device->must("cuDeviceGetAttribute", [&] { return driver.device_attribute(&value, which, found); });
    return value;
  };
  device->major = attribute(kMajor), device->minor = attribute(kMinor);
  if (!driver.simulated) device->node = node_of_pci(attribute(kPciDomain), attribute(kPciBus), attribute(kPciDevice));
  device->must("cuDevicePrimaryCtxRetain", [&] { return driver.context_retain(&device->context_, found); });
  Current current(*device);
  int least = 0, greatest = 0;
  device->must("cuCtxGetStreamPriorityRange", [&] { return driver.priority_range(&least, &greatest); });
  // Stores only protect; for a load a request waits. Neither may wait for the engine's legacy stream by itself.
  for (bool in : {false, true})
    device->must("cuStreamCreateWithPriority", [&] {
      return driver.stream_create(&device->streams_[in], kStreamNonBlocking, in ? greatest : least);
    });
  return device;
}

Device::Device(const Driver &table, Ordinal number, double seconds) : driver(table), ordinal(number), timeout(seconds) {
  batches_ = table.batches();
}

Device::~Device() {
  if (!context_ || !usable()) return;
  try {
    {
      Current current(*this);
      for (Event event : events_) ask([&] { return driver.event_destroy(event); });
      for (Module module : modules_) ask([&] { return driver.module_unload(module); });
      for (Stream stream : streams_)
        if (stream) ask([&] { return driver.stream_destroy(stream); });
    }
    ask([&] { return driver.context_release(ordinal); });
  } catch (...) {
  }
}

void Device::refuse(const char *what, Result result) const {
  fail(GFT_DEVICE, "%s on %s says %s%s", what, name.empty() ? driver.name.c_str() : name.c_str(),
       name_of(driver, result).c_str(),
       lost() ? "; the device is lost for this process: end it and start another" : "; look at nvidia-smi and dmesg");
}

Device::Away::Away(Device &of) : device(of) {
  std::lock_guard lock(device.away_mutex_);
  since = device.away_.insert(device.away_.end(), Clock::now());
}

Device::Away::~Away() {
  std::lock_guard lock(device.away_mutex_);
  device.away_.erase(since);
}

bool Device::stuck() noexcept {
  std::lock_guard lock(away_mutex_);
  return !away_.empty() && Clock::now() - away_.front() > std::chrono::duration<double>(timeout);
}

void Device::use_kernels(const std::vector<std::string> &images) {
  if (images.empty()) return do_without_kernels();
  if (!driver.kernels()) fail(GFT_DEVICE, "%s has no calls for kernels; copies go without them", driver.name.c_str());
  Current current(*this);
  Function functions[2] = {};
  const char *const names[2] = {kGather, kScatter};
  for (const std::string &image : images) {
    Module module = nullptr;
    must("cuModuleLoadData", [&] { return driver.module_load(&module, image.c_str()); });
    {
      std::lock_guard lock(modules_mutex_);
      modules_.push_back(module);
    }
    for (int i : {0, 1}) {
      Function found = nullptr;
      if (ask([&] { return driver.module_function(&found, module, names[i]); }) == kSuccess) functions[i] = found;
    }
  }
  if (!functions[0] || !functions[1])
    fail(GFT_DEVICE, "the images have no %s; build the kernels again", functions[0] ? kScatter : kGather);
  scatter_ = functions[1];
  gather_ = functions[0];
}

void Device::copy(bool in, const std::vector<Copy> &copies, Stream on, bool one_by_one) {
  if (copies.size() > 1 && batches_ && !one_by_one) {
    std::vector<Address> to, from;
    std::vector<size_t> bytes;
    for (const Copy &each : copies) {
      to.push_back(in ? each.device : reinterpret_cast<Address>(each.host));
      from.push_back(in ? reinterpret_cast<Address>(each.host) : each.device);
      bytes.push_back(each.bytes);
    }
    CopyAttributes attributes{};
    attributes.source_order = kSourceInStreamOrder;  // what the source holds depends on the work before it
    size_t first = 0, failed = 0;
    Result result = ask([&] {
      return driver.copy_batch_13
                 ? driver.copy_batch_13(to.data(), from.data(), bytes.data(), to.size(), &attributes, &first, 1, on)
                 : driver.copy_batch_12(to.data(), from.data(), bytes.data(), to.size(), &attributes, &first, 1, &failed, on);
    });
    if (result == kSuccess) return;
    if (lost()) refuse("cuMemcpyBatchAsync", result);
    // Some platforms have the call and refuse it. Copies that it did begin are made once more, with the same bytes.
    if (result == kNotSupported) do_without_batches();
  }
  for (const Copy &each : copies)
    must(in ? "cuMemcpyHtoDAsync" : "cuMemcpyDtoHAsync", [&] {
      return in ? driver.copy_in(each.device, each.host, each.bytes, on)
                : driver.copy_out(each.host, each.device, each.bytes, on);
    });
}

std::shared_ptr<Device::Mark> Device::mark(Stream on) {
  auto made = std::make_shared<Mark>();
  made->device = shared_from_this();
  {
    std::lock_guard lock(events_mutex_);
    if (!events_.empty()) {
      made->event = events_.back();
      events_.pop_back();
    }
  }
  if (!made->event)
    must("cuEventCreate", [&] { return driver.event_create(&made->event, kEventDisableTiming); });
  must("cuEventRecord", [&] { return driver.event_record(made->event, on); });
  return made;
}

Device::Mark::~Mark() {
  if (!event) return;
  std::lock_guard lock(device->events_mutex_);
  device->events_.push_back(event);
}

bool Device::passed(const Mark &mark) {
  Result result = ask([&] { return driver.event_query(mark.event); });
  if (result == kNotReady) return false;
  if (result) refuse("cuEventQuery", result);
  return true;
}

bool Device::wait(const Mark &mark, Clock::time_point deadline) {
  // Polled, because the driver's own wait has no deadline; short at first, for small loads.
  for (auto nap = std::chrono::microseconds(10);; nap = std::min(nap * 5 / 4, std::chrono::microseconds(200))) {
    if (passed(mark)) return true;
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(nap);
  }
}

Current::Current(Device &device) : device_(device) {
  device_.must("cuCtxPushCurrent", [&] { return device_.driver.context_push(device_.context_); });
}

Current::~Current() {
  // NOTE: asked even of a lost device: this touches the thread's own stack of contexts only.
  Context popped = nullptr;
  (void)device_.driver.context_pop(&popped);
}

}  // namespace gft::device
