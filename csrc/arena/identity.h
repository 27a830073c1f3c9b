// Everything a block's link was made from: what another tier keeps of a block, and what it must bring to put it back.
// One identity for life: a block that leaves the arena and returns is the same block, and its children still fit.
#pragma once

#include <string>

#include "core.h"

namespace gft {

struct Identity {
  Id name_space{};  // digest of the namespace's record, not its number
  uint32_t shard = 0;
  uint64_t position = 0, epoch = 0, payload_bytes = 0;
  std::string hash;
  Id parent_link{}, link{}, digest{};
};

Identity identity_of(const SlotHeader &header);  // of a header that was checked
// The fields that an identity gives a header; generation, namespace number and seal belong to the slot.
void put_identity(const Identity &identity, SlotHeader &header);

}  // namespace gft
