// Rings are of one writer and one reader; bells are futexes that lie in the shared memory.
#include "segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <ctime>

namespace {

// Copies between a ring, from position `at` on, and plain memory.
void copy(Ring &ring, uint64_t at, char *plain, size_t bytes, bool into_ring) {
  while (bytes) {
    size_t place = at % kRoom, part = std::min(bytes, kRoom - place);
    if (into_ring) std::memcpy(ring.data + place, plain, part);
    else std::memcpy(plain, ring.data + place, part);
    at += part, plain += part, bytes -= part;
  }
}

}  // namespace

Segment::~Segment() {
  unlink();
  if (base_) munmap(base_, bytes_);
}

Result Segment::open() {
  size_t seats = (sizeof(Seat) * kMaxRanks + 4095) / 4096 * 4096;
  bytes_ = seats + sizeof(Ring) * static_cast<size_t>(size_) * static_cast<size_t>(size_);
  int file = shm_open(name_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return kSystemError;
  named_ = true;
  // All of it now, so that a full memory file system is an error here and not a signal later. Zeros are the state that it begins in.
  bool room = posix_fallocate(file, 0, static_cast<off_t>(bytes_)) == 0;
  void *found = room ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
  ::close(file);
  if (found == MAP_FAILED) return kSystemError;
  base_ = static_cast<char *>(found);
  uint32_t nobody = 0;
  if (!seat(rank_).taken.compare_exchange_strong(nobody, 1)) return kInvalidUsage;
  for (int rank = 0; rank < size_; rank++) ring_bell(rank);
  return kSuccess;
}

bool Segment::all_joined(const std::atomic<bool> &stop) {
  while (!stop) {
    uint32_t heard = seat(rank_).bell.load();
    int there = 0;
    for (int rank = 0; rank < size_; rank++) there += seat(rank).taken.load() != 0;
    if (there == size_) {
      unlink();
      return true;
    }
    nap(heard);
  }
  return false;
}

Result Segment::move(std::vector<Transfer> &all, const std::atomic<bool> &stop) {
  while (!stop) {
    uint32_t heard = seat(rank_).bell.load();
    uint64_t busy[2] = {0, 0};  // peers with an earlier message that is not done, by direction
    bool moved = false, open = false, wrong = false;
    for (Transfer &each : all) {
      uint64_t peer = uint64_t{1} << each.peer;
      if (each.done == sizeof(Header) + each.bytes || busy[each.out] & peer) continue;
      moved |= each.out ? push(each) : pull(each, wrong);
      if (wrong) return kInvalidUsage;
      if (each.done < sizeof(Header) + each.bytes) busy[each.out] |= peer, open = true;
    }
    if (!open) return kSuccess;
    if (!moved) nap(heard);
  }
  return kInProgress;
}

bool Segment::push(Transfer &each) {
  Ring &to = ring(rank_, each.peer);
  uint64_t at = to.written.load(std::memory_order_relaxed);
  size_t room = kRoom - static_cast<size_t>(at - to.taken.load(std::memory_order_acquire));
  size_t before = each.done;
  if (each.done == 0) {
    if (room < sizeof(Header)) return false;
    Header header{each.bytes, each.kind};
    copy(to, at, reinterpret_cast<char *>(&header), sizeof header, true);
    each.done = sizeof header;
  }
  size_t sent = each.done - sizeof(Header), part = std::min(each.bytes - sent, room - (each.done - before));
  copy(to, at + (each.done - before), each.at + sent, part, true);
  each.done += part;
  if (each.done == before) return false;
  to.written.store(at + (each.done - before), std::memory_order_release);
  ring_bell(each.peer);
  return true;
}

bool Segment::pull(Transfer &each, bool &wrong) {
  Ring &from = ring(each.peer, rank_);
  uint64_t at = from.taken.load(std::memory_order_relaxed);
  size_t there = static_cast<size_t>(from.written.load(std::memory_order_acquire) - at);
  size_t before = each.done;
  if (each.done == 0) {
    if (there < sizeof(Header)) return false;
    Header header;
    copy(from, at, reinterpret_cast<char *>(&header), sizeof header, false);
    wrong = header.bytes != each.bytes || header.kind != each.kind;
    if (wrong) return false;
    each.done = sizeof header;
  }
  size_t came = each.done - sizeof(Header), part = std::min(each.bytes - came, there - (each.done - before));
  copy(from, at + (each.done - before), each.at + came, part, false);
  each.done += part;
  if (each.done == before) return false;
  from.taken.store(at + (each.done - before), std::memory_order_release);
  ring_bell(each.peer);
  return true;
}

Ring &Segment::ring(int from, int to) {
  size_t seats = bytes_ - sizeof(Ring) * static_cast<size_t>(size_) * static_cast<size_t>(size_);
  return reinterpret_cast<Ring *>(base_ + seats)[from * size_ + to];
}

void Segment::wake() {
  if (base_) ring_bell(rank_);
}

void Segment::ring_bell(int rank) {
  std::atomic<uint32_t> &bell = seat(rank).bell;
  bell.fetch_add(1);
  syscall(SYS_futex, &bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Segment::nap(uint32_t heard) {
  timespec most{0, kNapMs * 1000000};
  syscall(SYS_futex, &seat(rank_).bell, FUTEX_WAIT, heard, &most, nullptr, 0);
}

void Segment::unlink() {
  if (named_) shm_unlink(name_.c_str());
  named_ = false;
}
