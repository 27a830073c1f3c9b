// Fuzz target: the identity that a disk or a peer brings with a block: whatever it says, what gets sealed is what it names.
// The writer's chain has lost its end; the input mends or forges the next block.
#include "../../csrc/door.h"
#include "arena_image.h"
#include "look.h"

using namespace fuzz;

namespace {

gft_identity of_block(gft_writer *writer, uint64_t position, std::string &hash) {
  std::string own = name(position), parent = position ? name(position - 1) : "";
  gft_read *read = nullptr;
  CHECK(gft_writer_find(writer, bytes_of(own), position ? bytes_of(parent) : no_parent(), &read) == GFT_OK);
  gft_identity identity;
  gft_read_identity(read, &identity);
  hash.assign(reinterpret_cast<const char *>(identity.hash.data), identity.hash.size);
  gft_read_free(read);
  identity.hash = bytes_of(hash);
  return identity;
}

// As a forger would: the link follows from what the identity says.
void fit_link(gft_identity &identity) {
  gft::SlotHeader header{};
  std::memcpy(header.name_space_id, identity.name_space_id, 16);
  std::memcpy(header.parent_link, identity.parent_link, 16);
  std::memcpy(header.digest, identity.digest, 16);
  header.epoch = identity.epoch;
  header.shard = identity.shard;
  header.position = identity.position;
  header.hash_bytes = static_cast<uint32_t>(std::min<size_t>(identity.hash.size, 64));
  std::memcpy(header.hash, identity.hash.data, header.hash_bytes);
  std::memcpy(identity.link, gft::Core::link_of(gft::preferred_digest(), header).data(), 16);
}

void lie(gft_identity &identity, std::string &hash, Input &input) {
  uint8_t field = input.take<uint8_t>() % 9;
  uint8_t *sixteen[] = {identity.name_space_id, identity.parent_link, identity.link, identity.digest};
  if (field < 4) {
    auto fresh = input.bytes(16);
    if (!fresh.empty()) std::memcpy(sixteen[field], fresh.data(), fresh.size());
  } else if (field == 4) {
    identity.shard = input.take<uint32_t>();
  } else if (field == 5) {
    identity.position = input.take<uint64_t>();
  } else if (field == 6) {
    identity.epoch = input.take<uint64_t>();
  } else if (field == 7) {
    identity.payload_bytes = input.take<uint64_t>();
  } else {
    auto fresh = input.bytes(input.take<uint8_t>());
    hash.assign(fresh.begin(), fresh.end());
    identity.hash = bytes_of(hash);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static ArenaImage image("identity");
  static gft_writer *writer = nullptr;
  image.restore();
  if (!writer) CHECK(gft_arena_attach(image.arena, 0, token(), 0, 0, &writer) == GFT_OK);
  static const gft::LaneRecord lane = reinterpret_cast<gft::LaneRecord *>(image.memory + image.geometry.lanes)[0];
  std::memcpy(image.memory + image.geometry.lanes, &lane, sizeof lane);

  Input input(data, size);
  uint8_t how = input.take<uint8_t>();
  uint64_t position = how % kChain;
  std::string hash, claimed = name(position), parent = position ? name(position - 1) : "";
  gft_identity identity = of_block(writer, position, hash);
  for (uint64_t slot = 0; slot < kSlots; ++slot) {  // from here on the chain is gone
    gft::SlotHeader header;
    std::memcpy(&header, image.memory + image.geometry.headers + slot * sizeof header, sizeof header);
    if (header.position >= position) image.memory[image.geometry.states + slot * 8] = 0;
  }
  gft_claim *claim = nullptr;
  if (gft_writer_claim(writer, bytes_of(claimed), position ? bytes_of(parent) : no_parent(), position, &claim) != GFT_OK)
    return 0;
  uint64_t slot, address;
  gft_claim_info(claim, &slot, &address);
  fill_payload(how & 128 ? "another payload" : claimed, reinterpret_cast<uint8_t *>(address), kSlotBytes);
  for (uint8_t lies = input.take<uint8_t>() % 4; lies > 0; --lies) lie(identity, hash, input);
  if (how & 64) gft_digest(reinterpret_cast<const void *>(address), kSlotBytes, identity.digest);
  if (how & 32) fit_link(identity);
  bool with_parent = position > 0 && !(how & 16);
  gft_status status = gft_claim_seal_as(claim, &identity, with_parent ? bytes_of(parent) : no_parent(), how >> 3 & 1);
  gft_claim_free(claim);
  gft_read *read = nullptr;
  gft_status found = gft_writer_find(writer, bytes_of(claimed), position ? bytes_of(parent) : no_parent(), &read);
  CHECK((status == GFT_OK) == (found == GFT_OK));
  if (found == GFT_OK) {
    CHECK(gft_read_verify(read) == GFT_OK && hash == claimed);
    CHECK(identity.epoch <= 1 && identity.shard == 0 && identity.position == position);
    gft_identity sealed;
    gft_read_identity(read, &sealed);
    CHECK(std::memcmp(sealed.link, identity.link, 16) == 0 && std::memcmp(sealed.digest, identity.digest, 16) == 0);
    gft_read_free(read);
  }
  look_at_everything(image.arena);
  return 0;
}
