// Where everything lies in an arena file: computed from three numbers, never read from the file.
// The same function serves the creator and the opener, so both refuse the same geometries.
#pragma once

#include <cstdint>

namespace gft {

struct Geometry {
  uint64_t slot_bytes = 0, slots = 0, ledger_bytes = 0;

  uint64_t stride = 0;         // from one payload to the next: slot_bytes rounded up to pages
  uint64_t index_entries = 0;  // power of two, at least twice the slots
  uint64_t half_bytes = 0;     // of the ledger
  uint64_t control = 0, lanes = 0, namespaces = 0, index = 0, states = 0, stamps = 0, holds = 0, marks = 0, headers = 0,
           ledger = 0, payload = 0;
  uint64_t file_bytes = 0;

  // Throws GFT_INVALID with the rule that the numbers break.
  static Geometry of(uint64_t slot_bytes, uint64_t slots, uint64_t ledger_bytes);
};

}  // namespace gft
