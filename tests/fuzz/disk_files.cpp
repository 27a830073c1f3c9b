// Fuzz target: the folder of a disk log as it is found at opening: recovery of whole segment files, superblocks, summaries,
// locks, records that are compressed. An input changes, cuts, removes or exchanges files, with checksums and chunk digests that
// fit or not; then a reader, and sometimes a writer, opens it.
#include "../attacks/mass/disk_world.h"
#include "arena_image.h"

using namespace fuzz;

namespace {

// What is stored behind a header, or the header, under digests that fit: what a codec has to cope with.
void change_record(mass::DiskWorld &world, Input &input) {
  const mass::RecordAt &record = world.records[input.take<uint8_t>() % world.records.size()];
  uint8_t kind = input.take<uint8_t>();
  auto &segment = world.bytes(record.file);
  if (segment.size() < record.offset + mass::kDiskPage + record.stored) return;  // cut before
  if (kind & 1) {
    static constexpr size_t fields[][2] = {{14, 2}, {128, 8}, {136, 8}, {48, 8}, {12, 2}, {144, 8}, {232, 8}, {112, 8}};
    const auto &field = fields[kind >> 1 & 7];
    uint64_t value = kind & 16 ? input.take<uint64_t>() : input.take<uint16_t>();
    std::memcpy(segment.data() + record.offset + field[0], &value, field[1]);
  } else {
    size_t at = input.take<uint16_t>() % record.stored;
    auto fresh = input.bytes(std::min<size_t>(kind >> 1 & 31, record.stored - at));
    if (!fresh.empty()) std::memcpy(segment.data() + record.offset + mass::kDiskPage + at, fresh.data(), fresh.size());
  }
  if (kind & 64) world.remove("sum" + record.file.substr(3));  // so that the header alone speaks
  mass::fix_record(segment, record.offset);
}

void change(mass::DiskWorld &world, Input &input) {
  std::vector<std::string> names;
  for (const auto &[name, file] : world.files) names.push_back(name);
  std::string name = names[input.take<uint8_t>() % names.size()];
  uint8_t kind = input.take<uint8_t>();
  auto &data = world.bytes(name);
  if (data.empty()) return;
  // Nearly all that is read lies in pages that start a structure.
  size_t at = (input.take<uint8_t>() * mass::kDiskPage + input.take<uint16_t>() % 300) % data.size();
  switch (kind % 8) {
    case 0: {
      uint64_t word = input.take<uint64_t>();
      std::memcpy(data.data() + at, &word, std::min<size_t>(kind & 8 ? 4 : 8, data.size() - at));
      break;
    }
    case 1:
      data[at] ^= static_cast<uint8_t>(1u << input.take<uint8_t>() % 8);
      break;
    case 2: {
      auto fresh = input.bytes(std::min<size_t>(input.take<uint8_t>(), data.size() - at));
      if (!fresh.empty()) std::memcpy(data.data() + at, fresh.data(), fresh.size());
      break;
    }
    case 3:
      if (kind & 8) data.resize(at);
      break;
    case 4: {
      auto &other = world.bytes(names[input.take<uint8_t>() % names.size()]);
      if (kind & 8) return std::swap(data, other);
      size_t from = input.take<uint8_t>() * mass::kDiskPage;
      if (from < other.size())
        std::memmove(data.data() + at, other.data() + from, std::min(data.size() - at, other.size() - from));
      break;
    }
    case 5:
      if (kind & 8) return world.remove(name);
      break;
    case 6: {  // a page moves with its structure
      size_t to = input.take<uint8_t>() * mass::kDiskPage, page = at / mass::kDiskPage * mass::kDiskPage;
      if (std::max(to, page) + mass::kDiskPage <= data.size())
        std::memmove(data.data() + to, data.data() + page, mass::kDiskPage);
      break;
    }
    default:
      break;
  }
  if (!(kind & 16)) return;
  if (name.starts_with("seg-")) {
    size_t page = at / mass::kDiskPage * mass::kDiskPage;
    if (page + mass::kDiskPage <= data.size()) mass::fix_page(data.data() + page);
  } else {
    mass::fix_whole(data);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  static mass::DiskWorld world;
  mass::forger = true;
  world.restore();
  Input input(bytes, size);
  uint8_t how = input.take<uint8_t>();
  for (int i = 0; i < 10 && !input.empty(); ++i) (input.take<uint8_t>() % 3 ? change : change_record)(world, input);
  world.write_too = how % 8 == 0;
  Random random{how};
  (void)world.judge(random);
  return 0;
}
