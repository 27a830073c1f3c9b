// Collectives are messages between pairs of ranks; sums are added in the order of the ranks by whoever has the piece.
#include "comm.h"

#include <cstring>
#include <set>

#include "reduce.h"
#include "streams.h"

namespace {

constexpr int kSlowLaunch = 16;  // every so many launches are "in progress" for a moment

char *writable(const char *at) { return const_cast<char *>(at); }  // a transfer out only reads

struct Known {
  std::mutex lock;
  std::set<Comm *> all;
};

Known &known() {
  static auto *made = new Known;  // never destroyed, like the threads that are left when the program ends
  return *made;
}

}  // namespace

Comm::Comm(std::string id, int size, int rank)
    : id(id), size(size), rank(rank), segment_("/simulated-nccl-" + id, size, rank) {
  std::lock_guard held(known().lock);
  known().all.insert(this);
}

Comm::~Comm() {
  halt();
  std::lock_guard held(known().lock);
  known().all.erase(this);
}

Comm *Comm::find(void *handle) {
  std::lock_guard held(known().lock);
  auto *comm = static_cast<Comm *>(handle);
  return known().all.count(comm) ? comm : nullptr;
}

void Comm::begin(Comm *parent, Comm **handle) {
  if (parent) parent->child = this;
  thread_ = std::thread([this, parent, handle] { live(parent, handle); });
}

Result Comm::state() {
  if (launching_.exchange(false)) return kInProgress;
  return made_;
}

bool Comm::idle() {
  std::lock_guard held(lock_);
  return queue_.empty() && !running_;
}

Result Comm::put(std::vector<Call> calls, const void *stream) {
  {
    std::lock_guard held(lock_);
    queue_.push_back({std::move(calls), stream, take_ticket(stream)});
    launching_ = ++launches_ % kSlowLaunch == 0;
  }
  changed_.notify_all();
  return launching_ ? kInProgress : kSuccess;
}

void Comm::wait_until_made() {
  std::unique_lock held(lock_);
  changed_.wait(held, [this] { return made_ != kInProgress; });
}

void Comm::wait_until_idle() {
  std::unique_lock held(lock_);
  changed_.wait(held, [this] { return over || (queue_.empty() && !running_); });
}

void Comm::halt() {
  if (Comm *unfinished = child.exchange(nullptr)) delete unfinished;
  over = stop_ = true;
  if (made_ == kSuccess) segment_.wake();  // else it looks by itself, soon
  wake_waiting();
  { std::lock_guard held(lock_); }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (const Group &group : queue_) give_ticket_back(group.stream, group.ticket);
  queue_.clear();
}

void Comm::live(Comm *parent, Comm **handle) {
  Result result = segment_.open();
  if (result == kSuccess && !segment_.all_joined(stop_)) return;
  {
    std::lock_guard held(lock_);
    made_ = result;
  }
  changed_.notify_all();
  if (parent) {
    Comm *own = this;
    if (!parent->child.compare_exchange_strong(own, nullptr)) return;  // the parent ends, and ends us
    __atomic_store_n(handle, this, __ATOMIC_RELEASE);
  }
  while (!stop_) {
    Group group;
    {
      std::unique_lock held(lock_);
      changed_.wait(held, [this] { return stop_ || !queue_.empty(); });
      if (stop_) return;
      group = std::move(queue_.front());
      queue_.pop_front();
      running_ = true;
    }
    if (made_ == kSuccess && wait_for_turn(group.stream, group.ticket, stop_)) {
      Result done = carry_out(group.calls);
      if (done != kSuccess && done != kInProgress) made_ = done;
    }
    {
      std::lock_guard held(lock_);
      running_ = false;
    }
    give_ticket_back(group.stream, group.ticket);
    changed_.notify_all();
  }
}

Result Comm::carry_out(const std::vector<Call> &calls) {
  Result result = together(calls);
  for (const Call &call : calls) {
    if (result != kSuccess) break;
    if (call.kind == kAllReduce) result = all_reduce(call);
    if (call.kind == kAllGather) result = all_gather(call);
    if (call.kind == kBroadcast) result = broadcast(call);
  }
  return result;
}

// All sends and receives of a group, none of which waits for another; those to and from itself in pairs.
Result Comm::together(const std::vector<Call> &calls) {
  std::vector<Transfer> all;
  std::vector<const Call *> sent, received;
  for (const Call &call : calls) {
    bool out = call.kind == kSend;
    if (!out && call.kind != kReceive) continue;
    if (call.peer == rank) (out ? sent : received).push_back(&call);
    else all.push_back({call.peer, out, out ? writable(call.in) : call.out, call.bytes(), kSend});
  }
  if (sent.size() != received.size()) return kInvalidUsage;
  for (size_t i = 0; i < sent.size(); i++) {
    if (sent[i]->bytes() != received[i]->bytes()) return kInvalidUsage;
    std::memmove(received[i]->out, sent[i]->in, sent[i]->bytes());
  }
  return all.empty() ? kSuccess : segment_.move(all, stop_);
}

// Every rank adds the parts of one piece up, and gives the sum to all others.
Result Comm::all_reduce(const Call &call) {
  size_t width = kTypeBytes[call.type], n = static_cast<size_t>(size), own = static_cast<size_t>(rank);
  auto begin = [&](size_t piece) { return call.count * piece / n; };
  auto bytes = [&](size_t piece) { return (begin(piece + 1) - begin(piece)) * width; };
  std::vector<char> parts(bytes(own) * n);
  std::vector<Transfer> all;
  for (size_t peer = 0; peer < n; peer++) {
    if (peer == own) continue;
    all.push_back({static_cast<int>(peer), true, writable(call.in) + begin(peer) * width, bytes(peer), kAllReduce});
    all.push_back({static_cast<int>(peer), false, parts.data() + bytes(own) * peer, bytes(own), kAllReduce});
  }
  if (Result moved = segment_.move(all, stop_); moved != kSuccess) return moved;
  std::memcpy(parts.data() + bytes(own) * own, call.in + begin(own) * width, bytes(own));
  for (size_t peer = 1; peer < n; peer++) {
    const char *part = parts.data() + bytes(own) * peer;
    if (!reduce_into(parts.data(), part, bytes(own) / width, call.type, call.op)) return kInvalidUsage;
  }
  std::memcpy(call.out + begin(own) * width, parts.data(), bytes(own));
  all.clear();
  for (size_t peer = 0; peer < n; peer++) {
    if (peer == own) continue;
    all.push_back({static_cast<int>(peer), true, parts.data(), bytes(own), kAllReduce});
    all.push_back({static_cast<int>(peer), false, call.out + begin(peer) * width, bytes(peer), kAllReduce});
  }
  return segment_.move(all, stop_);
}

Result Comm::all_gather(const Call &call) {
  std::vector<Transfer> all;
  for (int peer = 0; peer < size; peer++) {
    char *place = call.out + call.bytes() * static_cast<size_t>(peer);
    if (peer == rank) {
      std::memmove(place, call.in, call.bytes());
      continue;
    }
    all.push_back({peer, true, writable(call.in), call.bytes(), kAllGather});
    all.push_back({peer, false, place, call.bytes(), kAllGather});
  }
  return segment_.move(all, stop_);
}

Result Comm::broadcast(const Call &call) {
  std::vector<Transfer> all;
  if (rank != call.peer) {
    all.push_back({call.peer, false, call.out, call.bytes(), kBroadcast});
    return segment_.move(all, stop_);
  }
  if (call.in != call.out) std::memmove(call.out, call.in, call.bytes());
  for (int peer = 0; peer < size; peer++) {
    if (peer != rank) all.push_back({peer, true, writable(call.in), call.bytes(), kBroadcast});
  }
  return segment_.move(all, stop_);
}
