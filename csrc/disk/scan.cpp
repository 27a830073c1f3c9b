// Reads headers through a small aligned window, so that small records cost one read per many and large ones a page each.
// Payloads are not read: their digests are checked when somebody wants them.
#include "scan.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "../support/fail.h"

namespace gft::disk {
namespace {

class Window {
 public:
  explicit Window(const SegmentFile &file) : file_(file), data_(static_cast<uint8_t *>(std::aligned_alloc(kPage, kBytes))) {
    if (!data_) fail(GFT_INTERNAL, "no memory to read %s", segment_name(file.number).c_str());
  }
  ~Window() { std::free(data_); }
  Window(const Window &) = delete;
  Window &operator=(const Window &) = delete;

  // `bytes` (at most two pages) at `offset`; null when they cannot be read. `ahead`: neighbours will be wanted too.
  const uint8_t *at(uint64_t offset, uint64_t bytes, bool ahead) {
    if (offset >= from_ && offset + bytes <= from_ + have_) return data_ + (offset - from_);
    uint64_t wanted = ahead ? kBytes : whole_pages(bytes);
    ssize_t got;
    do {
      got = pread(file_.descriptor(), data_, wanted, static_cast<off_t>(offset));
    } while (got < 0 && errno == EINTR);
    from_ = offset;
    have_ = got > 0 ? static_cast<uint64_t>(got) : 0;
    return have_ >= bytes ? data_ : nullptr;
  }

 private:
  static constexpr uint64_t kBytes = 256 << 10;
  const SegmentFile &file_;
  uint8_t *data_;
  uint64_t from_ = 0, have_ = 0;
};

}  // namespace

void scan(const SegmentFile &file, uint64_t limit, Walk &walk, Scanned &out) {
  if (!file.digest) return;
  if (walk.next == 0) walk = {kPage, 0, file.header.crc};
  uint64_t end = std::min<uint64_t>(limit ? limit : file.header.segment_bytes, file.bytes());
  Window window(file);
  Scanned group;
  std::vector<Named> named;
  uint64_t at = walk.next;
  bool ahead = walk.next == kPage;
  while (at + kPage <= end) {
    const uint8_t *page = window.at(at, kPage, ahead);
    if (!page) return;
    Place place{file.log(), file.number, at, end};
    Record record;
    if (parse_record(page, kPage, place, *file.digest, record) == nullptr) {
      if (named.size() >= kGroupRecords) return;
      named.push_back({at, record.crc});
      ahead = record.bytes() < (64 << 10);
      if (record.kind == Kind::name_space) {
        const uint8_t *text = window.at(at + kPage, record.entry.stored_bytes, true);
        if (!text || file.digest->of(text, record.entry.stored_bytes) != record.entry.key.name_space) return;
        group.namespaces.emplace_back(reinterpret_cast<const char *>(text), record.entry.stored_bytes);
      } else {
        group.entries.push_back(std::move(record.entry));
      }
      at += record.bytes();
      continue;
    }
    Commit commit;
    if (parse_commit(page, kPage, place, commit) || commit.sequence != walk.sequence || commit.previous != walk.previous ||
        commit.from != walk.next || commit.records != named)
      return;
    at += kPage;
    walk = {at, walk.sequence + 1, commit.crc};
    std::move(group.entries.begin(), group.entries.end(), std::back_inserter(out.entries));
    std::move(group.namespaces.begin(), group.namespaces.end(), std::back_inserter(out.namespaces));
    group = {};
    named.clear();
  }
}

}  // namespace gft::disk
