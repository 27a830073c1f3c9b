// The table of the twin: the same calls as the driver's, with its rules (streams in order, contexts per thread, registrations).
// Arguments that a driver would refuse are refused here, so that a mistake shows without a device.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "twin.h"

namespace gft::device {
namespace {

#define ENTER(twin)                                   \
  Twin *entered = (twin);                             \
  if (!entered) return 201; /* invalid context */     \
  if (Result refused = entered->enter()) return refused

TwinStream *of(Stream stream) { return reinterpret_cast<TwinStream *>(stream); }
TwinEvent *of(Event event) { return reinterpret_cast<TwinEvent *>(event); }

Result init(unsigned) { return kSuccess; }
Result driver_version(int *out) { return *out = 13000, kSuccess; }
Result error_name(Result result, const char **out) {
  *out = result == kLaunchFailed ? "CUDA_ERROR_LAUNCH_FAILED" : result == kUnknown ? "CUDA_ERROR_UNKNOWN" : "CUDA error";
  return kSuccess;
}
Result device_get(Ordinal *out, int number) {
  ENTER(Twin::find(number));
  *out = number;
  return kSuccess;
}
Result device_name(char *out, int bytes, Ordinal ordinal) {
  ENTER(Twin::find(ordinal));
  std::snprintf(out, static_cast<size_t>(bytes), "simulated device %d", ordinal);
  return kSuccess;
}
Result device_uuid(Uuid *out, Ordinal ordinal) {
  ENTER(Twin::find(ordinal));
  std::memset(out, 0, sizeof *out);
  std::memcpy(out->bytes, "simulated", 9);
  out->bytes[15] = static_cast<unsigned char>(ordinal);
  return kSuccess;
}
Result device_attribute(int *out, int which, Ordinal ordinal) {
  ENTER(Twin::find(ordinal));
  *out = which == kMajor ? 9 : 0;
  return kSuccess;
}
Result context_retain(Context *out, Ordinal ordinal) {
  ENTER(Twin::find(ordinal));
  *out = reinterpret_cast<Context>(entered);
  return kSuccess;
}
Result context_release(Ordinal ordinal) {
  ENTER(Twin::find(ordinal));
  return kSuccess;
}
Result context_push(Context context) {
  ENTER(reinterpret_cast<Twin *>(context));
  Twin::stack().push_back(entered);
  return kSuccess;
}
Result context_pop(Context *out) {
  // Without the faults: what was pushed is popped, so that a test's thread ends as it began.
  if (Twin::stack().empty()) return 201;
  if (out) *out = reinterpret_cast<Context>(Twin::stack().back());
  Twin::stack().pop_back();
  return kSuccess;
}
Result priority_range(int *least, int *greatest) {
  ENTER(Twin::current());
  *least = 0, *greatest = -5;
  return kSuccess;
}

Result stream_create(Stream *out, unsigned, int) {
  ENTER(Twin::current());
  *out = reinterpret_cast<Stream>(entered->stream());
  return kSuccess;
}
Result stream_destroy(Stream stream) {
  ENTER(of(stream)->twin);
  entered->end(of(stream));
  return kSuccess;
}
Result stream_capturing(Stream stream, int *out) {
  ENTER(of(stream)->twin);
  *out = 0;
  return kSuccess;
}
Result stream_wait(Stream stream, Event event, unsigned) {
  ENTER(of(stream)->twin);
  uint64_t wanted = of(event)->recorded;
  TwinEvent *waited = of(event);
  return entered->enqueue(of(stream), 0, [] {}, [waited, wanted] { return waited->done >= wanted; });
}
Result event_create(Event *out, unsigned) {
  ENTER(Twin::current());
  auto *made = new TwinEvent;
  made->twin = entered;
  *out = reinterpret_cast<Event>(made);
  return kSuccess;
}
Result event_destroy(Event event) {
  ENTER(of(event)->twin);
  // Leaked: work that is queued may still look at it. A test ends before that adds up.
  return kSuccess;
}
Result event_record(Event event, Stream stream) {
  ENTER(of(stream)->twin);
  TwinEvent *recorded = of(event);
  uint64_t number = ++recorded->recorded;
  return entered->enqueue(of(stream), 0, [recorded, number] { recorded->done = number; });
}
Result event_query(Event event) {
  ENTER(of(event)->twin);
  return of(event)->done >= of(event)->recorded ? kSuccess : kNotReady;
}

Result memory_allocate(Address *out, size_t bytes) {
  ENTER(Twin::current());
  return entered->allocate(out, bytes);
}
Result memory_free(Address address) {
  ENTER(Twin::current());
  return entered->free(address);
}
Result host_allocate(void **out, size_t bytes, unsigned) {
  ENTER(Twin::current());
  void *made = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return made ? (*out = made, kSuccess) : 2;
}
Result host_free(void *address) {
  ENTER(Twin::current());
  std::free(address);
  return kSuccess;
}
Result host_register(void *address, size_t bytes, unsigned) {
  ENTER(Twin::current());
  return entered->register_host(static_cast<uint8_t *>(address), bytes);
}
Result host_unregister(void *address) {
  ENTER(Twin::current());
  return entered->unregister_host(static_cast<uint8_t *>(address));
}

Result copy(Twin *twin, TwinStream *stream, void *host, Address device, size_t bytes, bool out) {
  uint8_t *there = twin->resolve(device, bytes);
  auto kind = twin->host_kind(host, bytes);
  if (!there || kind == Twin::Host::torn) return kInvalidValue;
  auto *here = static_cast<uint8_t *>(host);
  // Host memory that is not registered may have come from host_allocate, which is pinned as well: late in either case,
  // which is the harder one for whoever forgets to wait.
  return twin->enqueue(stream, twin->transfer_seconds(bytes), [twin, there, here, bytes, out] {
    out ? twin->transfer(here, there, bytes, true) : twin->transfer(there, here, bytes, false);
  });
}
Result copy_out(void *to, Address from, size_t bytes, Stream stream) {
  ENTER(of(stream)->twin);
  return copy(entered, of(stream), to, from, bytes, true);
}
Result copy_in(Address to, const void *from, size_t bytes, Stream stream) {
  ENTER(of(stream)->twin);
  return copy(entered, of(stream), const_cast<void *>(from), to, bytes, false);
}

Result batch(Twin *twin, Address *to, Address *from, size_t *bytes, size_t count, CopyAttributes *attributes, size_t *first,
             size_t attribute_count, Stream stream) {
  if (!count || attribute_count != 1 || first[0] != 0 || attributes->source_order != kSourceInStreamOrder)
    return kInvalidValue;
  struct Move {
    uint8_t *to;
    const uint8_t *from;
    size_t bytes;
    bool out;
  };
  auto moves = std::make_shared<std::vector<Move>>();
  size_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    uint8_t *source = twin->resolve(from[i], bytes[i]), *target = twin->resolve(to[i], bytes[i]);
    if (!source == !target) return kInvalidValue;  // exactly one side is the device's here
    auto *host = reinterpret_cast<uint8_t *>(source ? to[i] : from[i]);
    if (twin->host_kind(host, bytes[i]) == Twin::Host::torn) return kInvalidValue;
    moves->push_back({target ? target : host, source ? source : host, bytes[i], source != nullptr});
    total += bytes[i];
  }
  return twin->enqueue(of(stream), twin->transfer_seconds(total), [twin, moves] {
    // Copies of a batch have no order; backwards shows who relies on one.
    for (auto move = moves->rbegin(); move != moves->rend(); ++move)
      twin->transfer(move->to, move->from, move->bytes, move->out);
  });
}
Result copy_batch(Address *to, Address *from, size_t *bytes, size_t count, CopyAttributes *attributes, size_t *first,
                  size_t attribute_count, Stream stream) {
  ENTER(of(stream)->twin);
  if (entered->options().version < 12080) return kNotSupported;
  return batch(entered, to, from, bytes, count, attributes, first, attribute_count, stream);
}

// A module is the context it was loaded in; a function is its host twin.
Result module_load(Module *out, const void *image) {
  ENTER(Twin::current());
  if (!image || !entered->options().kernels) return kNoBinary;
  *out = reinterpret_cast<Module>(entered);
  return kSuccess;
}
Result module_unload(Module module) {
  ENTER(reinterpret_cast<Twin *>(module));
  return kSuccess;
}
Result module_function(Function *out, Module module, const char *name) {
  ENTER(reinterpret_cast<Twin *>(module));
  *out = reinterpret_cast<Function>(twin_kernel(name));
  return *out ? kSuccess : kNotFound;
}
Result launch(Function function, unsigned grid_x, unsigned, unsigned, unsigned block_x, unsigned, unsigned, unsigned,
              Stream stream, void **parameters, void **) {
  ENTER(of(stream)->twin);
  if (!grid_x || !block_x || block_x > 1024) return kInvalidValue;
  // The driver copies parameters during the call: so must we. Six of at most eight bytes each, see kernel.h.
  auto values = std::make_shared<std::array<uint64_t, 6>>();
  for (size_t i = 0; i < values->size(); ++i) std::memcpy(&(*values)[i], parameters[i], i == 1 || i == 5 ? 4 : 8);
  auto kernel = reinterpret_cast<TwinKernel>(function);
  Twin *twin = entered;
  return twin->enqueue(of(stream), twin->transfer_seconds(0), [twin, kernel, values] {
    void *pointers[6];
    for (size_t i = 0; i < values->size(); ++i) pointers[i] = &(*values)[i];
    kernel(*twin, pointers);
  });
}

Driver make_table() {
  Driver d;
  d.name = "simulated driver 13.0";
  d.simulated = true;
  d.version = 13000;
  d.init = init, d.driver_version = driver_version, d.error_name = error_name, d.device_get = device_get;
  d.device_name = device_name, d.device_uuid = device_uuid, d.device_attribute = device_attribute;
  d.context_retain = context_retain, d.context_release = context_release;
  d.context_push = context_push, d.context_pop = context_pop, d.priority_range = priority_range;
  d.stream_create = stream_create, d.stream_destroy = stream_destroy;
  d.stream_wait = stream_wait, d.stream_capturing = stream_capturing, d.event_create = event_create;
  d.event_destroy = event_destroy, d.event_record = event_record, d.event_query = event_query;
  d.memory_allocate = memory_allocate, d.memory_free = memory_free, d.host_allocate = host_allocate, d.host_free = host_free;
  d.host_register = host_register, d.host_unregister = host_unregister, d.copy_out = copy_out, d.copy_in = copy_in;
  d.copy_batch_13 = copy_batch, d.module_load = module_load, d.module_unload = module_unload;
  d.module_function = module_function, d.launch = launch;
  return d;
}

}  // namespace

const Driver &twin_driver() {
  static const Driver *table = new Driver(make_table());
  return *table;
}

}  // namespace gft::device
