// The exported functions: arguments checked as NCCL checks them, groups gathered per thread, communicators found by their handles.
//
// SIMULATED: it moves host memory between processes of one machine and knows no GPU. One symbol is its own: simulatedNcclDone.
#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "comm.h"
#include "streams.h"

namespace {

constexpr char kMark[] = "SIMULATED-NCCL";  // what ids of this library begin with

struct Named {  // in a UniqueId
  char mark[sizeof kMark];
  char name[33];
  int least;  // the lowest rank that may join by it: a grow's newcomers come behind the old ranks
};
static_assert(sizeof(Named) <= sizeof(UniqueId));

Result end(void *handle) {
  Comm *comm = Comm::find(handle);
  if (!comm) return kInvalidArgument;
  delete comm;
  return kSuccess;
}

std::string hex(uint64_t a, uint64_t b) {
  char text[33];
  snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(a), static_cast<unsigned long long>(b));
  return text;
}

// The same name on all ranks that say the same of the same parent.
std::string derived(const Comm &parent, const std::string &how) {
  uint64_t sums[2] = {0xcbf29ce484222325, 0x84222325cbf29ce4};
  for (char letter : parent.id + ' ' + how + ' ' + std::to_string(parent.children)) {
    for (uint64_t &sum : sums) sum = (sum ^ static_cast<unsigned char>(letter)) * 0x100000001b3 + (&sum - sums);
  }
  return hex(sums[0], sums[1]);
}

UniqueId packed(const std::string &name, int least) {
  Named named{};
  std::memcpy(named.mark, kMark, sizeof kMark);
  std::memcpy(named.name, name.c_str(), sizeof named.name);
  named.least = least;
  UniqueId id{};
  std::memcpy(&id, &named, sizeof named);
  return id;
}

bool unpacked(const UniqueId &id, Named &named) {
  std::memcpy(&named, &id, sizeof named);
  return std::memcmp(named.mark, kMark, sizeof kMark) == 0 && named.name[32] == 0;
}

bool good(const Config *config) {
  return !config || (config->size >= sizeof(Config) && config->magic == kConfigMagic &&
                     (config->blocking == kUndefined || config->blocking == 0 || config->blocking == 1));
}

// In progress, or waits: NCCL blocks unless it is told not to.
Result begun(Comm *comm, const Config *config) {
  if (config && config->blocking == 0) return kInProgress;
  comm->wait_until_made();
  return comm->state();
}

Result child_of(Comm *parent, const std::string &name, int size, int rank, void **handle, const Config *config) {
  auto *comm = new Comm(name, size, rank);
  parent->children++;
  comm->begin(parent, reinterpret_cast<Comm **>(handle));
  return begun(comm, config);
}

struct Gathered {
  int depth = 0;
  Result wrong = kSuccess;
  std::vector<std::tuple<Comm *, void *, std::vector<Call>>> calls;
};
thread_local Gathered gathered;

Result launch() {
  Gathered now;
  std::swap(now, gathered);
  Result result = now.wrong;
  for (auto &[comm, stream, calls] : now.calls) {
    if (now.wrong != kSuccess) break;  // all or nothing
    Result put = comm->put(std::move(calls), stream);
    if (put != kSuccess) result = put;
  }
  return result;
}

Result add(void *handle, void *stream, const Call &call) {
  Comm *comm = Comm::find(handle);
  Result wrong = kSuccess;
  if (!comm || !comm->ready()) wrong = kInvalidArgument;
  else if (comm->over) wrong = kInvalidUsage;
  else if (call.type < 0 || call.type >= kTypes || call.peer < 0 || call.peer >= comm->size || call.op < 0 || call.op >= kOps ||
           (call.count && ((call.kind != kReceive && !call.in) || (call.kind != kSend && !call.out))))
    wrong = kInvalidArgument;
  if (gathered.depth) {
    if (wrong != kSuccess) return gathered.wrong = wrong;
    auto same = [&](auto &each) { return std::get<0>(each) == comm && std::get<1>(each) == stream; };
    auto at = std::find_if(gathered.calls.begin(), gathered.calls.end(), same);
    if (at == gathered.calls.end()) at = gathered.calls.insert(at, {comm, stream, {}});
    std::get<2>(*at).push_back(call);
    return kSuccess;
  }
  return wrong != kSuccess ? wrong : comm->put({call}, stream);
}

const char *plain(const void *at) { return static_cast<const char *>(at); }
char *plain(void *at) { return static_cast<char *>(at); }

}  // namespace

NCCL_API Result ncclGetVersion(int *version) {
  if (!version) return kInvalidArgument;
  *version = kVersion;
  return kSuccess;
}

NCCL_API const char *ncclGetErrorString(Result result) {
  switch (result) {
    case kSuccess: return "no error (simulated NCCL)";
    case kSystemError: return "unhandled system error (simulated NCCL)";
    case kInternalError: return "internal error (simulated NCCL)";
    case kInvalidArgument: return "invalid argument (simulated NCCL)";
    case kInvalidUsage: return "invalid usage (simulated NCCL)";
    case kRemoteError: return "remote process exited or there was a network error (simulated NCCL)";
    case kInProgress: return "NCCL operation in progress (simulated NCCL)";
    default: return "unknown result code (simulated NCCL)";
  }
}

NCCL_API const char *ncclGetLastError(void *) { return "simulated NCCL: see the result code"; }

NCCL_API Result ncclGetUniqueId(UniqueId *id) {
  uint64_t drawn[2];
  if (!id) return kInvalidArgument;
  if (getrandom(drawn, sizeof drawn, 0) != sizeof drawn) return kSystemError;
  *id = packed(hex(drawn[0], drawn[1]), 0);
  return kSuccess;
}

NCCL_API Result ncclCommInitRankConfig(void **handle, int size, UniqueId id, int rank, const Config *config) {
  Named named;
  if (!handle || size < 1 || size > kMaxRanks || rank < 0 || rank >= size || !good(config)) return kInvalidArgument;
  if (!unpacked(id, named) || named.least) return kInvalidArgument;
  auto *comm = new Comm(named.name, size, rank);
  *handle = comm;
  comm->begin();
  return begun(comm, config);
}

NCCL_API Result ncclCommShrink(void *handle, int *gone, int count, void **made, const Config *config, int flags) {
  Comm *parent = Comm::find(handle);
  if (!parent || !made || !gone || count < 1 || !good(config) || (flags & ~kShrinkAbort)) return kInvalidArgument;
  std::set<int> excluded(gone, gone + count);
  if (excluded.count(parent->rank) || *excluded.begin() < 0 || *excluded.rbegin() >= parent->size) return kInvalidArgument;
  *made = nullptr;
  if (flags & kShrinkAbort) {
    parent->halt();
  } else if (!parent->ready() || !parent->idle() || parent->over) {
    return kInvalidUsage;
  }
  std::string how = "shrink";
  for (int rank : excluded) how += ' ' + std::to_string(rank);
  auto below = static_cast<int>(std::distance(excluded.begin(), excluded.lower_bound(parent->rank)));
  int size = parent->size - static_cast<int>(excluded.size());
  return child_of(parent, derived(*parent, how), size, parent->rank - below, made, config);
}

NCCL_API Result ncclCommGetUniqueId(void *handle, UniqueId *id) {
  Comm *parent = Comm::find(handle);
  if (!parent || !id || !parent->ready()) return kInvalidArgument;
  if (parent->over || !parent->idle()) return kInvalidUsage;
  *id = packed(derived(*parent, "grow"), parent->size);
  return kSuccess;
}

NCCL_API Result ncclCommGrow(void *handle, int size, const UniqueId *id, int rank, void **made, const Config *config) {
  Named named;
  if (!made || size > kMaxRanks || !good(config)) return kInvalidArgument;
  *made = nullptr;
  if (handle) {
    Comm *parent = Comm::find(handle);
    if (!parent || !parent->ready() || rank != -1 || size <= parent->size) return kInvalidArgument;
    if (parent->over || !parent->idle()) return kInvalidUsage;
    return child_of(parent, derived(*parent, "grow"), size, parent->rank, made, config);
  }
  if (!id || !unpacked(*id, named) || rank < named.least || named.least < 1 || rank >= size) return kInvalidArgument;
  auto *comm = new Comm(named.name, size, rank);
  *made = comm;
  comm->begin();
  return begun(comm, config);
}

NCCL_API Result ncclCommRevoke(void *handle, int flags) {
  Comm *comm = Comm::find(handle);
  if (!comm || flags || comm->revoked) return kInvalidArgument;
  comm->revoked = true;
  comm->halt();
  return kInProgress;  // as NCCL says of one that does not block; `state` has the end of it
}

NCCL_API Result ncclCommAbort(void *handle) { return end(handle); }

NCCL_API Result ncclCommFinalize(void *handle) {
  Comm *comm = Comm::find(handle);
  if (!comm) return kInvalidArgument;
  if (comm->revoked) return kInvalidUsage;
  comm->finalizing = true;
  return kInProgress;
}

// Waits for what was put on it, however long that takes.
NCCL_API Result ncclCommDestroy(void *handle) {
  Comm *comm = Comm::find(handle);
  if (!comm) return kInvalidArgument;
  comm->wait_until_idle();
  return end(handle);
}

NCCL_API Result ncclCommGetAsyncError(void *handle, Result *error) {
  Comm *comm = Comm::find(handle);
  if (!comm || !error) return kInvalidArgument;
  *error = comm->finalizing && !comm->idle() ? kInProgress : comm->state();
  return kSuccess;
}

NCCL_API Result ncclCommCount(void *handle, int *count) {
  Comm *comm = Comm::find(handle);
  if (!comm || !count) return kInvalidArgument;
  *count = comm->size;
  return kSuccess;
}

NCCL_API Result ncclCommUserRank(void *handle, int *rank) {
  Comm *comm = Comm::find(handle);
  if (!comm || !rank) return kInvalidArgument;
  *rank = comm->rank;
  return kSuccess;
}

NCCL_API Result ncclAllReduce(const void *in, void *out, size_t count, int type, int op, void *comm, void *stream) {
  return add(comm, stream, {kAllReduce, plain(in), plain(out), count, type, op, 0});
}

NCCL_API Result ncclAllGather(const void *in, void *out, size_t count, int type, void *comm, void *stream) {
  return add(comm, stream, {kAllGather, plain(in), plain(out), count, type, 0, 0});
}

NCCL_API Result ncclBroadcast(const void *in, void *out, size_t count, int type, int root, void *comm, void *stream) {
  return add(comm, stream, {kBroadcast, plain(in), plain(out), count, type, 0, root});
}

NCCL_API Result ncclSend(const void *in, size_t count, int type, int peer, void *comm, void *stream) {
  return add(comm, stream, {kSend, plain(in), nullptr, count, type, 0, peer});
}

NCCL_API Result ncclRecv(void *out, size_t count, int type, int peer, void *comm, void *stream) {
  return add(comm, stream, {kReceive, nullptr, plain(out), count, type, 0, peer});
}

NCCL_API Result ncclGroupStart() {
  gathered.depth++;
  return kSuccess;
}

NCCL_API Result ncclGroupEnd() {
  if (!gathered.depth) return kInvalidUsage;
  return --gathered.depth ? kSuccess : launch();
}

// With *mark 0: 0, and *mark becomes what was put on the stream until now. With a mark: 1 when all of that is over, carried out or aborted.
// There are no CUDA events here to ask.
NCCL_API int simulatedNcclDone(const void *stream, uint64_t *mark) {
  if (*mark == 0) {
    *mark = newest_ticket(stream);
    return *mark == 0;
  }
  return all_over(stream, *mark);
}
