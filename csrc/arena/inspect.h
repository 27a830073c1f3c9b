// Looking at an arena without changing it: counts, the list of slots, and the check of one payload.
// Works on read-only mappings and while writers are at work.
#pragma once

#include <vector>

#include "core.h"

namespace gft {

gft_counts count_slots(const Core &core);
std::vector<gft_slot_info> scan_slots(Core &core);
std::vector<gft_usage> count_usage(const Core &core);
const char *verify_slot(Core &core, uint64_t slot);
// The header of a sealed slot; with `to` (room for one payload) also the payload, verified as copied. Throws GFT_NOT_FOUND
// (nothing sealed there), GFT_CHANGED, GFT_DAMAGED (seal, link or namespace), GFT_DIGEST.
SlotHeader read_slot(Core &core, uint64_t slot, uint8_t *to);

}  // namespace gft
