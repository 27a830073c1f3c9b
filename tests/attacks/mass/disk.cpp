// Mass faults on the disk log: flips, torn and lost writes, cut, missing and exchanged files, swapped, doubled and stale
// records, other logs and models, and headers that lie under checksums made to fit. The judge is in disk_world.cpp.
#include "disk_world.h"

using namespace mass;

namespace {

uint64_t hostile(Random &random) {
  static constexpr uint64_t limits[] = {0,
                                        1,
                                        2,
                                        63,
                                        64,
                                        65,
                                        128,
                                        129,
                                        4095,
                                        4096,
                                        4097,
                                        8192,
                                        65536,
                                        262144,
                                        262144 - 4096,
                                        (1ull << 31) - 1,
                                        1ull << 31,
                                        (1ull << 32) - 1,
                                        1ull << 32,
                                        1ull << 36,
                                        (1ull << 63) - 1,
                                        1ull << 63,
                                        ~0ull - 4095,
                                        ~0ull};
  return random.below(10) < 8 ? limits[random.below(std::size(limits))] : random();
}

void set(uint8_t *at, uint64_t value, size_t bytes) { std::memcpy(at, &value, bytes); }

}  // namespace

int main(int argc, char **argv) {
  DiskWorld w;
  auto record = [&](Random &r, bool block = true) -> const RecordAt & {
    for (;;)
      if (const RecordAt &at = w.records[r.below(w.records.size())]; at.block || !block) return at;
  };
  // Without a codec in this build there is none, and any will do.
  auto packed = [&](Random &r) -> const RecordAt & {
    bool some = std::any_of(w.records.begin(), w.records.end(), [](const RecordAt &at) { return at.codec != 0; });
    for (;;)
      if (const RecordAt &at = record(r); at.codec || !some) return at;
  };
  auto page = [&](const RecordAt &at) { return w.bytes(at.file).data() + at.offset; };
  auto pages = [](const RecordAt &at) { return kDiskPage + (at.stored + kDiskPage - 1) / kDiskPage * kDiskPage; };
  auto flip = [](Random &r, uint8_t *at, uint64_t bytes) { at[r.below(bytes)] ^= static_cast<uint8_t>(1u << r.below(8)); };
  // A summary spares a reader the headers and commits; without it they are what counts.
  auto without_summaries = [&] {
    for (auto &[name, file] : w.files)
      if (name.starts_with("sum-")) w.remove(name);
  };
  // Two different blocks whose payloads are equally long.
  auto two = [&](Random &r) {
    for (;;) {
      const RecordAt &a = record(r), &b = record(r);
      if (&a != &b && a.stored == b.stored) return std::pair<const RecordAt &, const RecordAt &>(a, b);
    }
  };
  // Makes a record whole at its new place: what a copy with a checksum would be.
  auto place = [](uint8_t *at, const uint8_t *segment, uint64_t offset) {
    std::memcpy(at + 16, segment + 16, 16);
    std::memcpy(at + 32, segment + 32, 8);
    set(at + 40, offset, 8);
    fix_page(at);
  };

  std::vector<Kind> kinds = {
      {"disk_flip_payload",
       [&](Random &r) {
         const RecordAt &at = record(r);
         flip(r, page(at) + kDiskPage, at.stored);
       }},
      {"disk_flip_header", [&](Random &r) { flip(r, page(record(r)), 240); }},
      {"disk_flip_chunk_table",
       [&](Random &r) {
         const RecordAt &at = record(r);
         flip(r, page(at) + 240, 16 * ((at.stored + kDiskPage - 1) / kDiskPage));
       }},
      {"disk_flip_commit",
       [&](Random &r) {
         auto &[file, at] = w.commits[r.below(w.commits.size())];
         flip(r, w.bytes(file).data() + at, 100);
         without_summaries();
       }},
      {"disk_flip_super",
       [&](Random &r) {
         auto &file = w.bytes(w.any(r, "super-"));
         flip(r, file.data(), file.size());
       },
       true},
      {"disk_flip_summary",
       [&](Random &r) {
         std::string name = w.any(r, "sum-");
         auto &file = w.bytes(name.empty() ? w.any(r, "super-") : name);
         flip(r, file.data(), file.size());
       },
       true},
      {"disk_flip_segment_header", [&](Random &r) { flip(r, w.bytes(w.any(r, "seg-")).data(), 68); }},
      {"disk_many_flips",
       [&](Random &r) {
         auto &file = w.bytes(w.any(r, "seg-"));
         for (uint64_t i = 2 + r.below(60); i > 0; --i) flip(r, file.data(), file.size());
       }},
      {"disk_torn_write",
       [&](Random &r) {  // the rest of a record never reached the disk: zeros, or what was there before
         const RecordAt &at = record(r);
         uint64_t cut = r.below(2) ? 512 * (1 + r.below(pages(at) / 512 - 1)) : 1 + r.below(pages(at) - 1);
         if (r.below(2))
           std::memset(page(at) + cut, 0, pages(at) - cut);
         else
           for (uint64_t i = cut; i < pages(at); ++i) page(at)[i] = static_cast<uint8_t>(r());
       }},
      {"disk_lost_page",
       [&](Random &r) {
         auto &file = w.bytes(w.any(r, "seg-"));
         uint64_t at = r.below(file.size() / kDiskPage) * kDiskPage;
         std::memset(file.data() + at, r.below(2) ? 0 : 0xff, kDiskPage);
       }},
      {"disk_truncated_segment",
       [&](Random &r) {
         auto &file = w.bytes(w.any(r, "seg-"));
         file.resize(r.below(3) ? r.below(file.size()) : r.below(file.size() / kDiskPage) * kDiskPage);
       }},
      {"disk_truncated_other",
       [&](Random &r) {
         std::string sum = w.any(r, "sum-");
         auto &file = w.bytes(!sum.empty() && r.below(2) ? sum : w.any(r, "super-"));
         file.resize(r.below(file.size()));
       },
       true},
      {"disk_missing_file",
       [&](Random &r) {
         const char *which[] = {"seg-", "sum-", "super-", "lock"};
         for (uint64_t n = 1 + r.below(3); n > 0; --n)
           if (std::string name = w.any(r, which[r.below(4)]); !name.empty()) w.remove(name);
       },
       true},
      {"disk_exchanged_files",
       [&](Random &r) {
         const char *which = r.below(2) ? "seg-" : "s";
         std::string a = w.any(r, which), b = w.any(r, which);
         if (a != b)
           std::swap(w.bytes(a), w.bytes(b));
         else
           w.remove(a);
       }},
      {"disk_doubled_segment",
       [&](Random &r) {  // under a number that is not its own, sometimes with a header that says it is
         std::string a = w.any(r, "seg-"), name = a;
         set(reinterpret_cast<uint8_t *>(name.data()) + name.size() - 1, "0123456789abcdef"[r.below(16)], 1);
         auto copy = w.files[a].now;
         if (r.below(2)) {
           uint64_t number = 0;
           std::memcpy(&number, copy.data() + 32, 8);
           set(copy.data() + 32, (number & ~15ull) | r.below(16), 8);
           fix_page(copy.data());
         }
         if (name == a)
           w.bytes(a) = copy;
         else
           w.add(name, copy);
         if (r.below(2)) w.remove(w.any(r, "super-"));
       },
       true},
      {"disk_swapped_payloads",
       [&](Random &r) {
         auto [a, b] = two(r);
         std::swap_ranges(page(a) + kDiskPage, page(a) + pages(a), page(b) + kDiskPage);
       }},
      {"disk_swapped_headers",
       [&](Random &r) {
         auto [a, b] = two(r);
         std::swap_ranges(page(a), page(a) + kDiskPage, page(b));
         if (r.below(2)) place(page(a), w.bytes(a.file).data(), a.offset), place(page(b), w.bytes(b.file).data(), b.offset);
       }},
      {"disk_swapped_blocks",
       [&](Random &r) {
         auto [a, b] = two(r);
         std::swap_ranges(page(a), page(a) + pages(a), page(b));
         if (r.below(2)) place(page(a), w.bytes(a.file).data(), a.offset), place(page(b), w.bytes(b.file).data(), b.offset);
       }},
      {"disk_duplicated_record",
       [&](Random &r) {  // over another one, with or without the checksum for its new place
         auto [a, b] = two(r);
         std::memcpy(page(b), page(a), pages(a));
         if (r.below(2)) place(page(b), w.bytes(b.file).data(), b.offset);
       }},
      {"disk_stale_records",
       [&](Random &r) {  // the block of the other epoch with the same name in its place
         auto [a, b] = two(r);
         std::memcpy(page(b) + kDiskPage, page(a) + kDiskPage, pages(a) - kDiskPage);
         if (r.below(2)) std::memcpy(page(b) + 240, page(a) + 240, 2048), fix_page(page(b));
       }},
      {"disk_stale_files",
       [&](Random &r) {  // superblocks, segments, summaries of the first term come back
         for (const auto &[name, bytes] : w.earlier)
           if (r.below(2)) w.add(name, bytes);
       },
       true},
      {"disk_foreign_files",
       [&](Random &r) {  // of another log that holds the same blocks
         for (const auto &[name, bytes] : w.foreign)
           if (r.below(3) == 0) w.add(name, bytes);
       }},
      {"disk_wrong_namespace",
       [&](Random &r) {  // relabelled, sometimes with the parent's link and a checksum that fits
         const RecordAt &a = record(r), &b = record(r);
         std::memcpy(page(a) + 48, page(b) + 48, 16);
         if (r.below(2)) std::memcpy(page(a) + 64, page(b) + 64, 16);
         if (r.below(4)) fix_page(page(a));
       }},
      {"disk_lying_namespace_record",
       [&](Random &r) {
         for (const RecordAt &at : w.records)
           if (!at.block && r.below(2)) {
             page(at)[kDiskPage + r.below(at.stored)] ^= 3;
             if (r.below(2)) page(at)[48 + r.below(16)] ^= 1, fix_page(page(at));
           }
         without_summaries();
       }},
      {"disk_lying_header",
       [&](Random &r) {  // lengths, places, epochs, kinds under a checksum that fits
         uint8_t *at = page(record(r, false));
         static constexpr size_t fields[][2] = {{8, 4},   {12, 2},  {14, 2},  {32, 8},  {40, 8},  {112, 8}, {120, 8},
                                                {128, 8}, {136, 8}, {144, 4}, {148, 4}, {216, 8}, {232, 4}, {236, 4}};
         const auto &field = fields[r.below(std::size(fields))];
         set(at + field[0], hostile(r), field[1]);
         fix_page(at);
       }},
      {"disk_lying_identity",
       [&](Random &r) {  // another block's fields under a checksum that fits
         const RecordAt &a = record(r), &b = record(r);
         static constexpr size_t fields[][2] = {{64, 16}, {80, 16}, {96, 16}, {112, 8}, {120, 8}, {152, 64}, {48, 168}};
         const auto &field = fields[r.below(std::size(fields))];
         std::memcpy(page(a) + field[0], page(b) + field[0], field[1]);
         fix_page(page(a));
       }},
      {"disk_lying_chunk_table",
       [&](Random &r) {  // pieces exchanged together with their digests, under a checksum that fits
         const RecordAt &at = record(r);
         uint64_t whole = at.stored / kDiskPage, i = r.below(whole + 1), j = r.below(whole + 1);
         if (i < whole && j < whole && i != j)
           std::swap_ranges(page(at) + kDiskPage * (i + 1), page(at) + kDiskPage * (i + 2), page(at) + kDiskPage * (j + 1));
         std::swap_ranges(page(at) + 240 + 16 * i, page(at) + 256 + 16 * i, page(at) + 240 + 16 * j);
         if (i == j) flip(r, page(at) + 240, 32);
         fix_page(page(at));
       }},
      {"disk_chunks_of_another",
       [&](Random &r) {  // a piece of another block with its digest, under a checksum that fits
         auto [a, b] = two(r);
         uint64_t whole = a.stored / kDiskPage, i = whole ? r.below(whole) : 0;
         std::memcpy(page(a) + kDiskPage * (i + 1), page(b) + kDiskPage * (i + 1), kDiskPage);
         std::memcpy(page(a) + 240 + 16 * i, page(b) + 240 + 16 * i, 16);
         fix_page(page(a));
       }},
      {"disk_lying_packed",
       [&](Random &r) {  // the bytes to unpack lie under digests and checksums that fit
         const RecordAt &at = packed(r);
         uint8_t *stored = page(at) + kDiskPage;
         for (uint64_t n = 1 + r.below(4); n > 0; --n) {
           uint64_t from = r.below(4) ? r.below(std::min<uint64_t>(at.stored, 24)) : r.below(at.stored);
           stored[from] = r.below(2) ? static_cast<uint8_t>(r()) : static_cast<uint8_t>(r.below(2) ? 0xff : 0);
         }
         if (r.below(4) == 0) set(page(at) + 136, 1 + r.below(at.stored), 8), without_summaries();
         fix_record(w.bytes(at.file), at.offset);
       }},
      {"disk_lying_codec",
       [&](Random &r) {  // another codec, or another length to unpack to, likewise
         const RecordAt &at = r.below(4) ? packed(r) : record(r);
         if (r.below(2))
           set(page(at) + 14, r.below(4), 2);
         else
           set(page(at) + 128, r.below(2) ? hostile(r) : at.stored + r.below(60000), 8);
         without_summaries();
         fix_record(w.bytes(at.file), at.offset);
       }},
      {"disk_lying_commit",
       [&](Random &r) {  // under a checksum that fits
         auto &[file, at] = w.commits[r.below(w.commits.size())];
         uint8_t *commit = w.bytes(file).data() + at;
         static constexpr size_t fields[][2] = {{8, 4},  {12, 4}, {32, 8}, {40, 8}, {48, 8},
                                                {56, 8}, {64, 4}, {76, 4}, {80, 4}};
         const auto &field = fields[r.below(std::size(fields))];
         set(commit + field[0], hostile(r), field[1]);
         fix_page(commit);
         without_summaries();
       }},
      {"disk_lying_super",
       [&](Random &r) {  // terms, limits, flags, counts under a checksum that fits
         auto &file = w.bytes(w.any(r, "super-"));
         uint64_t at = r.below(2) ? 32 + 8 * r.below(3) : 56 + 8 * r.below(std::max<uint64_t>(1, (file.size() - 56) / 8));
         if (at + 8 <= file.size()) set(file.data() + at, hostile(r), 8);
         fix_whole(file);
       },
       true},
      {"disk_lying_summary",
       [&](Random &r) {  // places and lengths of other records, limits and nonsense, under a checksum that fits
         std::string name = w.any(r, "sum-");
         auto &file = w.bytes(name.empty() ? w.any(r, "super-") : name);
         uint64_t words = file.size() / 8;
         if (r.below(2)) {
           set(file.data() + 8 * r.below(words), hostile(r), 8);
         } else {
           uint64_t entries = (file.size() - 72) / 176, a = r.below(entries + 1), b = r.below(entries + 1);
           uint64_t end = file.size(), from = end - 176 * (entries ? 1 + a % entries : 0),
                    to = end - 176 * (entries ? 1 + b % entries : 0);
           size_t field = r.below(3) == 0 ? 64 : r.below(2) ? 96 : 100, bytes = field == 64 ? 16 : 4;
           if (entries && from + field + bytes <= end && to + field + bytes <= end)
             std::swap_ranges(file.data() + from + field, file.data() + from + field + bytes, file.data() + to + field);
         }
         fix_whole(file);
       },
       true},
      {"disk_pulse_and_noise",
       [&](Random &r) {  // hints change; a file grows by noise; the log is worked on
         auto &lock = w.bytes("lock");
         for (uint8_t &byte : lock)
           if (r.below(2)) byte = static_cast<uint8_t>(r());
         auto &file = w.bytes(w.any(r, "seg-"));
         uint64_t from = r.below(file.size());
         for (uint64_t n = 1 + r.below(600); n > 0 && from < file.size(); --n) file[from++] = static_cast<uint8_t>(r());
         w.write_too = true;
       }},
      {"disk_damage_then_work",
       [&](Random &r) {
         for (uint64_t n = 1 + r.below(8); n > 0; --n) {
           auto &file = w.bytes(w.any(r, "s"));
           if (!file.empty()) flip(r, file.data(), file.size());
         }
         w.write_too = true;
       }},
  };
  return run(
      argc, argv, kinds, [&] { w.restore(); }, [&](Random &r) { return w.judge(r); });
}
