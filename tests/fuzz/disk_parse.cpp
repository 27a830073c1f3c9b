// Fuzz target: every parser of the disk log as a pure function: superblock, segment header, record header, commit page,
// summary, and what unpacks a compressed record. An input patches sound bytes, with a checksum that fits or not, or is the bytes themselves; what is accepted
// keeps its promises.
#include "../../csrc/disk/parse.h"

#include "../../csrc/digest/crc32c.h"
#include "../../csrc/disk/codec.h"
#include "arena_image.h"

using namespace fuzz;
using namespace gft::disk;

namespace {

const gft::DigestAlgorithm &digest() { return gft::preferred_digest(); }
constexpr uint64_t kSegment = uint64_t{1} << 32 | 1, kLimit = 64 << 10;

Key key_of(uint64_t position, uint64_t bytes) {
  Key key;
  key.name_space.fill(7);
  key.parent_link = key.name_space;
  if (position) key.parent_link.fill(9);
  key.position = position;
  key.epoch = 1;
  key.payload_bytes = bytes;
  key.hash = name(position);
  key.digest.fill(3);
  key.link = link_of(key, digest());
  return key;
}

constexpr size_t kUnpacked = 3000;
const std::vector<uint8_t> &payload() {
  static const auto bytes = [] {
    std::vector<uint8_t> out(kUnpacked, 4);
    fill_payload("what does not pack", out.data(), 200);
    for (size_t i = 700; i < 1500; ++i) out[i] = out[i - 650];
    for (size_t i = 1500; i < 2200; ++i) out[i] = static_cast<uint8_t>("some of the letters"[i * i % 19]);
    return out;
  }();
  return bytes;
}

struct Sound {
  Id log{};
  std::vector<std::vector<uint8_t>> images;  // by parser

  Sound() {
    log.fill(5);
    images.resize(8);
    images[0] = build_super({log, 2, 9, {{kSegment, 0, 0}, {kSegment + 1, 8192, 1}, {kSegment + 2, 4096, 0}}});
    std::vector<uint8_t> page(kPage), stored(9000, 1);
    build_segment_header(log, kSegment, kLimit, digest().name, page.data());
    images[1] = page;
    build_record(Kind::block, Codec::none, key_of(1, stored.size()), stored.data(), stored.size(), digest(), page.data());
    uint32_t crc = place_record({log, kSegment, 8192, kLimit}, page.data());
    images[2] = page;
    Key named;
    named.payload_bytes = 100;
    build_record(Kind::name_space, Codec::none, named, stored.data(), 100, digest(), page.data());
    (void)place_record({log, kSegment, 8192, kLimit}, page.data());
    images[3] = page;
    build_commit({log, kSegment, 8192, kLimit}, {3, 4096, 77, 0, {{4096, crc}}}, page.data());
    images[4] = page;
    Summary summary;
    summary.limit = kLimit;
    summary.digest_name = digest().name;
    summary.namespaces = {"model A", std::string(33, 'b')};
    for (uint64_t i = 0; i < 3; ++i) {
      Entry entry;
      entry.key = key_of(i, 5000);
      entry.segment = kSegment;
      entry.offset = 4096 + i * 12288;
      entry.stored_bytes = 5000;
      summary.entries.push_back(entry);
    }
    images[5] = build_summary(log, kSegment, summary);
    for (Codec codec : {Codec::zstd, Codec::lz4}) {  // without the library: nothing, and the input's own bytes are all there is
      auto &image = images[5 + static_cast<size_t>(codec)];
      image.resize(kUnpacked);
      image.resize(pack(codec, payload().data(), kUnpacked, image.data(), image.size()));
    }
  }
};

void fit(std::vector<uint8_t> &data, size_t which) {
  if (which == 0 || which == 5) {
    if (data.size() < 16) return;
    std::memset(data.data() + 12, 0, 4);
    uint32_t crc = gft::crc32c(data.data(), data.size());
    std::memcpy(data.data() + 12, &crc, 4);
  } else if (data.size() >= kPage) {
    uint32_t crc = gft::crc32c(data.data(), kPage - 4);
    std::memcpy(data.data() + kPage - 4, &crc, 4);
  }
}

void check(const Entry &entry, uint64_t limit) {
  CHECK(entry.key.hash.size() <= 64 && entry.offset >= kPage && entry.offset % kPage == 0 && entry.offset < limit);
  CHECK(entry.stored_bytes > 0 && record_bytes(entry.stored_bytes) <= limit - entry.offset);
}

void parse(const std::vector<uint8_t> &data, size_t which, const Id &log) {
  const Place place{log, kSegment, 8192, kLimit};
  if (which == 0) {
    Super out;
    if (parse_super(data.data(), data.size(), out)) return;
    Super again;
    auto built = build_super(out);
    CHECK(!parse_super(built.data(), built.size(), again) && again.segments.size() == out.segments.size());
    for (size_t i = 1; i < out.segments.size(); ++i) CHECK(out.segments[i - 1].segment < out.segments[i].segment);
  } else if (which == 1) {
    SegmentHeader out;
    if (parse_segment_header(data.data(), data.size(), &log, kSegment, out)) return;
    CHECK(out.segment_bytes <= kMaxSegment && std::string(out.digest_name).size() < sizeof out.digest_name);
  } else if (which <= 3) {
    Record out;
    if (parse_record(data.data(), data.size(), place, digest(), out)) return;
    check(out.entry, kLimit);
    CHECK(out.chunk_digests.size() == out.chunks && out.chunks <= kMaxChunks);
    CHECK(uint64_t{out.chunks} * out.chunk_bytes >= out.entry.stored_bytes);
    if (out.kind == Kind::block) CHECK(link_of(out.entry.key, digest()) == out.entry.key.link);
  } else if (which == 4) {
    Commit out;
    if (parse_commit(data.data(), data.size(), place, out)) return;
    CHECK(!out.records.empty() && out.records.size() <= kGroupRecords && out.from < place.offset);
  } else {
    Summary out;
    if (parse_summary(data.data(), data.size(), log, kSegment, out)) return;
    for (const Entry &entry : out.entries) check(entry, out.limit);
    Summary again;
    auto built = build_summary(log, kSegment, out);
    CHECK(!parse_summary(built.data(), built.size(), log, kSegment, again) && again.entries.size() == out.entries.size());
  }
}

// The libraries come ready-made, unseen by the sanitizers: guards before and behind show what is written outside, and what is
// accepted may not depend on what was there before.
std::vector<uint8_t> unpacked(Codec codec, const std::vector<uint8_t> &data, size_t room, uint8_t fill) {
  constexpr size_t kGuard = 4096;
  std::vector<uint8_t> memory(kGuard + room + kGuard, fill);
  bool whole = unpack(codec, data.data(), data.size(), memory.data() + kGuard, room);
  auto untouched = [&](const uint8_t *from) { return std::all_of(from, from + kGuard, [=](uint8_t b) { return b == fill; }); };
  CHECK(untouched(memory.data()) && untouched(memory.data() + kGuard + room));
  if (!whole) return {};
  return {memory.begin() + kGuard, memory.end() - kGuard};
}

void unpack_both(const std::vector<uint8_t> &data, size_t which, size_t room, bool sound) {
  auto codec = static_cast<Codec>(which - 5);
  std::vector<uint8_t> once = unpacked(codec, data, room, 0), twice = unpacked(codec, data, room, 0xa5);
  CHECK(once == twice);
  if (sound && room == kUnpacked && have_codec(codec)) CHECK(once == payload());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  static const Sound sound;
  Input input(bytes, size);
  uint8_t how = input.take<uint8_t>();
  size_t which = how % sound.images.size();
  std::vector<uint8_t> data = sound.images[which];
  if (how & 64) {
    auto raw = input.bytes(size);
    data.assign(raw.begin(), raw.end());
    if (which > 0 && which < 5) data.resize(kPage);
  }
  size_t room = which > 5 && how & 8 ? input.take<uint16_t>() : kUnpacked;
  for (int i = 0; i < 12 && !input.empty() && !data.empty(); ++i) {
    uint8_t kind = input.take<uint8_t>();
    size_t at = input.take<uint16_t>() % data.size();
    if (kind % 4 == 0) {
      uint64_t word = input.take<uint64_t>();
      std::memcpy(data.data() + at, &word, std::min<size_t>(kind & 4 ? 4 : 8, data.size() - at));
    } else if (kind % 4 == 1) {
      data[at] ^= static_cast<uint8_t>(1u << input.take<uint8_t>() % 8);
    } else if (kind % 4 == 2) {
      auto fresh = input.bytes(std::min<size_t>(input.take<uint8_t>(), data.size() - at));
      if (!fresh.empty()) std::memcpy(data.data() + at, fresh.data(), fresh.size());
    } else if (kind == 3) {
      data.resize(at);
    } else {
      size_t from = input.take<uint16_t>() % data.size();
      std::memmove(data.data() + at, data.data() + from,
                   std::min<size_t>({input.take<uint8_t>(), data.size() - at, data.size() - from}));
    }
  }
  if (which > 5) return unpack_both(data, which, room, data == sound.images[which]), 0;
  if (how & 128) fit(data, which);
  parse(data, which, sound.log);
  return 0;
}
