// One batch from its first look at the engine's stream to the digests of its blocks. Failures of the device end here as
// statuses; what was begun has ended before a slot or an engine block is let go.
#include "device_mover.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "../device/mix.h"
#include "../support/optimistic.h"

namespace gft {

using namespace device;

namespace {

constexpr uint64_t kMostPieces = 65536;
constexpr double kFinishSeconds = 2;

uint64_t pieces_of(size_t blocks, const Layout &layout) {
  // Twice: cuts at registrations and at staging's end make more of them.
  return std::min<uint64_t>(kMostPieces, 2 * blocks * layout.regions.size() + 64);
}

}  // namespace

DeviceMover::DeviceMover(std::shared_ptr<Device> device, std::shared_ptr<Writer> writer, const Layout &layout, DeviceRules rules)
    : device_(std::move(device)),
      writer_(std::move(writer)),
      layout_(layout),
      rules_(std::move(rules)),
      batch_(std::clamp<uint64_t>(rules_.staging_bytes / layout.block_bytes, 1, kMaxOwners)) {
  if (rules_.thread_blocks < 1 || rules_.thread_blocks > 1024 || rules_.staging_bytes < 65536)
    fail(GFT_INVALID, "a device copy engine with %u thread blocks and %llu bytes of staging; it must have 1 to 1024, and at least 65536",
         rules_.thread_blocks, (unsigned long long)rules_.staging_bytes);
  if (device_->lost()) device_->refuse("opening a copy engine", kLaunchFailed);
  for (int i = 0; i < rules_.threads; ++i)
    berths_.push_back(std::make_unique<Berth>(device_, rules_.staging_bytes / kAlignment * kAlignment, pieces_of(batch_, layout_)));
  registration_ = Registration::start(device_, writer_, rules_.chunk_bytes);
}

std::shared_ptr<void> DeviceMover::after(uint64_t stream) {
  // The simulated device has no stream of that name; on a real one it is the legacy stream, which torch uses by default.
  if (!stream && device_->driver.simulated) return nullptr;
  Current current(*device_);
  auto handle = reinterpret_cast<Stream>(stream);
  int capturing = 0;
  if (device_->driver.stream_capturing) {
    device_->must("cuStreamIsCapturing", [&] { return device_->driver.stream_capturing(handle, &capturing); });
    if (capturing)
      fail(GFT_BUSY, "the engine's stream is being captured into a graph; queue copies before or after the capture");
  }
  return device_->mark(handle);
}

std::unique_ptr<Berth> DeviceMover::take_berth() {
  std::lock_guard lock(mutex_);
  // As many berths as threads, so there is one; the one used last is the warm one.
  for (size_t i = berths_.size(); i-- > 0;) {
    if (berths_[i]->dead) continue;
    if (berths_[i]->overdue && !device_->passed(*berths_[i]->overdue)) continue;
    auto berth = std::move(berths_[i]);
    berths_.erase(berths_.begin() + static_cast<std::ptrdiff_t>(i));
    berth->overdue.reset();
    return berth;
  }
  fail(GFT_DEVICE, "%s has not finished earlier copies within %g s; the device is wedged, end this process", device_->name.c_str(),
       device_->timeout);
}

void DeviceMover::put_berth(std::unique_ptr<Berth> berth) noexcept {
  std::lock_guard lock(mutex_);
  berths_.push_back(std::move(berth));
}

void DeviceMover::fail_all(const std::vector<Move *> &moves, gft_status status, const std::string &detail, bool held) {
  for (Move *move : moves) {
    if (move->status != GFT_OK) continue;
    move->status = status;
    move->detail = detail;
    move->held = held;
  }
}

void DeviceMover::move(std::span<Move> moves, bool in) noexcept {
  std::vector<Move *> left;
  std::unique_ptr<Berth> berth;
  try {
    for (Move &each : moves)
      if (each.status == GFT_OK) left.push_back(&each);
    Current current(*device_);
    wait_for_engine(left);
    if (left.empty()) return;
    berth = take_berth();
    // The second attempt, after a refused call or a mix-up, goes the simplest way there is.
    for (int tried = 0; tried < 2 && !left.empty(); ++tried) {
      Batch batch{left, berth.get(), in, nullptr, {}, false};
      try {
        attempt(batch, tried > 0);
        left = mixed_up(batch);
        if (tried > 0)
          fail_all(left, GFT_DIGEST, "what the device sent is not what arrived, twice; look at its memory and its link", false);
      } catch (...) {
        Fail why = current_failure();
        bool over = quiet(batch);
        if (!over || tried > 0 || !device_->usable()) {
          fail_all(left, why.code, why.text, !in && (!over || device_->lost()));
          left.clear();
        }
      }
      if (tried == 0 && !left.empty()) ++retries_;
    }
  } catch (...) {
    Fail why = current_failure();
    fail_all(left, why.code, why.text, false);
  }
  if (berth) put_berth(std::move(berth));
}

void DeviceMover::wait_for_engine(std::vector<Move *> &moves) {
  for (Move *move : moves) {
    if (!move->job->ready) continue;
    const auto &mark = *static_cast<Device::Mark *>(move->job->ready.get());
    // No deadline of its own: the engine may compute as long as it likes, and nothing is under way yet.
    while (!move->job->unwanted && !device_->wait(mark, Clock::now() + std::chrono::milliseconds(20))) {
    }
  }
  for (Move *move : moves)
    if (move->job->unwanted) move->status = GFT_CANCELLED;
  std::erase_if(moves, [](Move *move) { return move->status != GFT_OK; });
}

uint8_t *DeviceMover::Batch::host(size_t i, const DeviceMover &mover) const {
  return bounce ? bounce + i * mover.layout_.block_bytes : mover.writer_->core().payload(moves[i]->slot);
}

void DeviceMover::prepare(Batch &batch, bool careful) {
  Core &core = writer_->core();
  const uint64_t bytes = layout_.block_bytes;
  bool pinned = true;
  for (Move *move : batch.moves) {
    core.prefault_payload(move->slot);
    pinned = pinned && registration_->covers(core.payload(move->slot), bytes);
  }
  // Without a bounce buffer either, the driver copies to and from plain memory by itself, slowly.
  if (!pinned) batch.bounce = batch.berth->bounce(batch_ * bytes);
  if (batch.bounce) bounced_ += batch.moves.size() * bytes;
  std::vector<Fragment> fragments;
  for (size_t i = 0; i < batch.moves.size(); ++i) {
    Move &move = *batch.moves[i];
    if (batch.in && batch.bounce) {
      OptimisticRead slot_may_be_given_away;
      std::memcpy(batch.host(i, *this), core.payload(move.slot), bytes);
    }
    if (batch.in && batch.bounce) move.digest = core.digest().of(batch.host(i, *this), bytes);
    uint64_t at = 0;
    for (const gft_region &region : layout_.regions) {
      fragments.push_back({region.address + move.block_id * region.stride,
                           reinterpret_cast<uint64_t>(batch.host(i, *this)) + at, region.fragment_bytes,
                           static_cast<uint32_t>(i), at});
      at += region.fragment_bytes;
    }
  }
  PlanRules rules;
  rules.kernels = !careful && device_->has_kernels() && batch.berth->ready_for_kernels();
  if (careful && rules_.digest) rules.kernels = device_->has_kernels() && batch.berth->ready_for_kernels();
  rules.pack_all = rules_.digest;
  rules.pack = batch.in ? rules_.in : rules_.out;
  rules.staging_bytes = batch.berth->staging_bytes();
  rules.max_pieces = batch.berth->max_pieces();
  if (!batch.bounce) rules.host_base = registration_->base(), rules.host_chunk = registration_->chunk();
  batch.plan = make_plan(std::move(fragments), rules);
  batch.digested = rules_.digest && rules.kernels && batch.plan.direct.empty();
}

void DeviceMover::attempt(Batch &batch, bool careful) {
  prepare(batch, careful);
  ++batches_;
  direct_ += batch.plan.direct.size();
  for (const Round &round : batch.plan.rounds) packed_ += round.pieces.size();
  batch.berth->submit(batch.plan, batch.in, careful, rules_.thread_blocks, batch.digested, device_->stream(batch.in));
  await(batch);
  if (!batch.plan.rounds.empty())
    if (uint64_t error = batch.berth->results().error) {
      device_->do_without_kernels();
      fail(GFT_DEVICE, "a copy kernel on %s refused its pieces (error word %llu); kernels are off from now on",
           device_->name.c_str(), (unsigned long long)error);
    }
  arrived(batch);
}

void DeviceMover::await(Batch &batch) {
  auto mark = device_->mark(device_->stream(batch.in));
  auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(device_->timeout));
  if (device_->wait(*mark, deadline)) return;
  ++overdue_;
  // A late copy in would hit memory that the engine may have given to another request: only its end is an end.
  while (batch.in)
    if (device_->wait(*mark, Clock::now() + std::chrono::seconds(1))) return;
  batch.berth->overdue = mark;
  fail(GFT_DEVICE, "%s did not finish a copy within %g s; the device is wedged, end this process", device_->name.c_str(),
       device_->timeout);
}

// After a failure: whether nothing of this batch is under way any more.
bool DeviceMover::quiet(Batch &batch) noexcept {
  auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(device_->timeout));
  // Of a lost device nothing more is coming, as far as the driver says; slots are held all the same.
  while (!device_->lost()) {
    if (batch.berth->overdue || batch.berth->dead) return false;
    try {
      auto mark = device_->mark(device_->stream(batch.in));
      if (device_->wait(*mark, deadline)) return true;
      if (!batch.in) {
        batch.berth->overdue = mark;
        return false;
      }
    } catch (...) {
      if (!batch.in && Clock::now() > deadline) {
        batch.berth->dead = true;
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  return true;
}

void DeviceMover::arrived(Batch &batch) {
  Core &core = writer_->core();
  core.check_alive();
  for (size_t i = 0; i < batch.moves.size(); ++i) {
    Move &move = *batch.moves[i];
    if (batch.bounce) {
      if (!batch.in) std::memcpy(core.payload(move.slot), batch.host(i, *this), layout_.block_bytes);
      if (batch.in) continue;  // digested on the way
    }
    // On the way in, after the copy: a slot that changed before or during it still differs now.
    move.digest = core.payload_digest(move.slot);
  }
}

// Moves whose bytes on the device were not those in the arena.
std::vector<Move *> DeviceMover::mixed_up(const Batch &batch) {
  std::vector<Move *> out;
  if (!batch.digested) return out;
  for (size_t i = 0; i < batch.moves.size(); ++i) {
    OptimisticRead slot_may_be_given_away;
    if (mix(batch.host(i, *this), layout_.block_bytes, 0) != batch.berth->results().digest[i]) out.push_back(batch.moves[i]);
  }
  mixups_ += out.size();
  return out;
}

DeviceMover::~DeviceMover() { (void)finish(kFinishSeconds); }

bool DeviceMover::finish(double seconds) noexcept {
  try {
    if (!registration_ || device_->stuck()) return false;
    auto berths = std::make_shared<std::vector<std::unique_ptr<Berth>>>();
    {
      std::lock_guard lock(mutex_);
      if (!finishing_) {
        bool usable = berths_.size() == static_cast<size_t>(rules_.threads);
        for (auto &berth : berths_) usable = usable && !berth->dead && !(berth->overdue && !device_->lost() && !device_->passed(*berth->overdue));
        if (!usable) return false;  // copies may still be under way into the mapping: it stays registered
        berths->swap(berths_);
        finishing_ = true;
      }
    }
    return registration_->finish(seconds, [berths] {
      for (auto &berth : *berths) berth->release();
    });
  } catch (...) {
    return false;
  }
}

std::vector<std::pair<std::string, double>> DeviceMover::facts() {
  auto progress = registration_->progress();
  auto number = [](auto value) { return static_cast<double>(value); };
  return {{"payload_bytes", number(progress.bytes)},
          {"registered_bytes", number(progress.registered)},
          {"registration_seconds", progress.seconds},
          {"registration_done", number(progress.done)},
          {"registration_failed", number(progress.failed)},
          {"huge_pages", number(progress.huge_pages)},
          {"batches", number(batches_.load())},
          {"direct_copies", number(direct_.load())},
          {"packed_pieces", number(packed_.load())},
          {"bounced_bytes", number(bounced_.load())},
          {"retries", number(retries_.load())},
          {"mixups", number(mixups_.load())},
          {"overdue", number(overdue_.load())},
          {"kernels", number(device_->has_kernels())},
          {"batched_copies", number(device_->batches())},
          {"device_lost", number(device_->lost())},
          {"device_stuck", number(device_->stuck())}};
}

}  // namespace gft
