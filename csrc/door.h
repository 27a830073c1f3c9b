// What the door's functions share: the handles, and the wall that turns exceptions into status codes.
// Handles hold references, so that freeing one never pulls the mapping from under another.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arena/ledger.h"
#include "arena/writer.h"
#include "copy/engine.h"
#include "gft.h"

struct gft_arena {
  std::shared_ptr<gft::Core> core;
};
struct gft_writer {
  std::shared_ptr<gft::Writer> writer;
};
struct gft_claim {
  std::unique_ptr<gft::Claim> claim;
};
struct gft_read {
  std::shared_ptr<gft::Writer> writer;
  gft::Sealed sealed;
};
struct gft_engine {
  std::shared_ptr<gft::Engine> engine;
};
struct gft_ledger {
  std::unique_ptr<gft::Ledger> ledger;
};

namespace gft {

void remember_error(const std::string &text) noexcept;

template <typename Body>
gft_status behind_wall(Body body) noexcept {
  try {
    body();
    return GFT_OK;
  } catch (...) {
    Fail why = current_failure();
    remember_error(why.text);
    return why.code;
  }
}

inline std::string_view view(gft_bytes bytes) {
  return bytes.size ? std::string_view(reinterpret_cast<const char *>(bytes.data), bytes.size) : std::string_view();
}

inline std::optional<std::string> parent_of(gft_bytes bytes) {
  return bytes.data ? std::optional<std::string>(view(bytes)) : std::nullopt;
}

inline std::vector<std::string_view> views(const gft_bytes *bytes, size_t count) {
  std::vector<std::string_view> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i) out.push_back(view(bytes[i]));
  return out;
}

inline std::vector<BlockSpec> specs(const gft_block *blocks, size_t count) {
  std::vector<BlockSpec> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i)
    out.push_back({blocks[i].block_id, std::string(view(blocks[i].hash)), parent_of(blocks[i].parent), blocks[i].position});
  return out;
}

}  // namespace gft
