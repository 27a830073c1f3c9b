// The disk log of one shard: appends blocks durably, finds them by name, reads them back verified.
// Everything else in this folder is behind this header; README.md says what the bytes are.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../gft.h"

namespace gft::disk {

using Clock = std::chrono::steady_clock;
using Id = std::array<uint8_t, 16>;

// A block's identity, as it was sealed in the arena; stored and given back verbatim.
struct Key {
  Id name_space{};  // digest of the namespace record
  uint32_t shard = 0;
  uint64_t position = 0, epoch = 0, payload_bytes = 0;
  std::string hash;  // 1 to 64 bytes
  Id parent_link{}, link{}, digest{};

  bool operator==(const Key &) const = default;
};

enum class Codec : uint8_t { none = 0, zstd = 1, lz4 = 2 };

// A committed record and where it lies. Stays valid as a name; reading it after it was collected gives GFT_NOT_FOUND.
struct Entry {
  Key key;
  uint64_t segment = 0, offset = 0, stored_bytes = 0;
  Codec codec = Codec::none;
};

// Bytes [from, from + bytes) of the payload go to `to`, whose contents are undefined unless the read ends GFT_OK.
struct Range {
  uint64_t from = 0, bytes = 0;
  uint8_t *to = nullptr;
};

// GFT_NOT_FOUND (collected), GFT_DIGEST and GFT_DAMAGED (dropped from the index), GFT_IO, GFT_MISMATCH (digest or codec
// that this build lacks), GFT_TIMED_OUT (`to` is not touched after the call returned), GFT_INVALID (a range outside).
struct Read {
  Entry entry;
  std::vector<Range> ranges;
  gft_status status = GFT_INTERNAL;
  std::string detail;
};

struct Settled {
  uint64_t ticket = 0;
  gft_status status = GFT_OK;
};

enum class Backend : uint8_t { best, io_uring, threads };

// Fails the `nth` (from 1) operation of a kind, and `count` - 1 after it, with `error`: how tests break a disk without one.
struct Fault {
  enum class Kind : uint8_t { read, write, sync } kind = Kind::write;
  uint64_t nth = 1, count = 1;
  int error = 5;
};

struct Options {
  uint64_t segment_bytes = uint64_t{256} << 20;  // made smaller when `cap_bytes` holds fewer than eight
  uint64_t cap_bytes = 0;                        // of all segments together; 0: what the file system has
  uint64_t staging_bytes = uint64_t{64} << 20;   // memory for writes, and as much again for reads
  uint64_t group_bytes = uint64_t{16} << 20;
  uint32_t window_ms = 20;                       // a group is committed when it is this old or this large
  uint32_t depth = 32;                           // operations in flight
  uint32_t read_threads = 1;                     // that verify what one call reads
  uint32_t idle_ms = 10'000;                     // without appends, before sealed segments are compressed
  double live_ratio = 0.5;                       // segments with less than this alive are rewritten
  Codec compress = Codec::none;
  Backend backend = Backend::best;
  bool direct = true;                            // O_DIRECT where the file system allows it
  bool takeover = false;                         // open although a live process writes: it is fenced off
  std::string digest;                            // of the payloads; empty: what new arenas are made with
  std::vector<Fault> faults;
};

struct Stats {
  uint64_t segments = 0, disk_bytes = 0, records = 0, live_bytes = 0, payload_bytes = 0, compressed = 0, held = 0;
  uint64_t appended = 0, appended_bytes = 0, pending = 0, commits = 0, failed = 0;
  uint64_t read = 0, read_bytes = 0, read_bad = 0, moved = 0, evicted = 0, dropped = 0, collected = 0;
  uint64_t term = 0, max_epoch = 0;
  bool writable = false;
  gft_status reason = GFT_OK;       // why appends are refused now
  std::string reason_text;
  std::string backend;              // "io_uring" or "threads"
  bool direct = false;
  std::string digest;
  double open_seconds = 0;
};

class Log {
 public:
  // Writer: makes the folder (0700) when absent, takes the log over from a dead writer, recovers. GFT_BUSY names the pid of
  // a live one unless `takeover`. Where the folder can be read but not written (read-only or full file system) the log
  // opens with appends refused and the reason in stats. Reader: GFT_NOT_FOUND when there is no log; never writes.
  static std::shared_ptr<Log> open(const std::string &folder, const Options &options, bool read_only);
  ~Log();  // as close with a second to spare

  // Any thread. Copies the payload into an aligned staging buffer, digesting on the way (the source may change under it:
  // GFT_DIGEST when what was copied is not key.digest); waits for room until `deadline`, then GFT_TIMED_OUT. GFT_PRESENT
  // when a record with this link is committed. After GFT_OK `ticket` comes back from poll, once. GFT_NO_SPACE, GFT_IO,
  // GFT_READ_ONLY, GFT_FENCED: appends are refused, stats says why. GFT_INVALID: a key that contradicts itself, or whose
  // namespace was not added. Throws nothing; `detail` may be null.
  gft_status append(const Key &key, const uint8_t *payload, uint64_t ticket, Clock::time_point deadline,
                    std::string *detail = nullptr);
  std::vector<Settled> poll();            // GFT_OK: committed and durable. Never waits.
  bool flush(Clock::time_point deadline); // commits what was appended; true when all of it is settled (see poll for how)
  // Throws GFT_INVALID (size). The same record twice is one.
  Id add_namespace(const void *record, size_t bytes);
  void touch(std::span<const Id> links);
  void hold(std::span<const Id> links);  // counted; not kept across processes
  void release(std::span<const Id> links);

  // Headers only, microseconds. Any position when negative. Newest epoch first.
  std::vector<Entry> find(const Id &name_space, uint32_t shard, std::string_view hash, int64_t position) const;
  bool find_link(const Id &link, Entry &out) const;
  void refresh();  // reader: what was committed or collected since; one small read when nothing was
  // Many records are read, verified and copied out by several threads where `read_threads` allows it.
  void read(std::span<Read> reads, Clock::time_point deadline);
  unsigned read_threads() const;
  void drop(const Entry &entry);  // a record found bad; remembered on disk when this is the writer
  std::vector<Entry> entries() const;
  std::vector<std::string> namespaces() const;
  uint64_t max_epoch() const;
  Stats stats() const;
  bool close(Clock::time_point deadline);  // false: something was still under way and was left to its thread

  struct Inside;

 private:
  explicit Log(std::shared_ptr<Inside> inside) : inside_(std::move(inside)) {}
  std::shared_ptr<Inside> inside_;
};

}  // namespace gft::disk
