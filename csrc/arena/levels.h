// The walk along links from block to block, whatever holds the blocks: per position those whose parent was reached, and at its end one
// chain through them. Used by chain.cpp (arena) and ../backing/walk.cpp (arena and disk log).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core.h"

namespace gft {

// Why a block cannot be used, the less telling first: the most telling of several candidates is the answer.
enum class Why { missing, writing, name_space, damaged, epoch, chain, ok };
const char *why_text(Why why);   // of Prefix.reason
gft_status why_status(Why why);  // of a single block

// Several blocks may bear one name (a stale writer's and its successor's): all that fit so far are kept, so that the walk never ends
// early because it took the wrong twin. `Block` has link() and parent_link(); `find(hash, position, why)` gives the blocks of that
// name and place that hold for themselves, or says why there are none.
template <typename Block>
class Levels {
 public:
  template <typename Find>
  Why start(const Id &name_space, const std::string *parent, uint64_t position, const Find &find) {
    position_ = position;
    levels_.clear();
    links_.clear();
    if (!parent) {
      if (position != 0) return Why::chain;
      links_.push_back(name_space);
      return Why::ok;
    }
    if (position == 0) return Why::chain;
    Why why;
    for (const Block &block : find(*parent, position - 1, why)) links_.push_back(block.link());
    return links_.empty() ? why : Why::ok;
  }

  template <typename Find>
  Why step(std::string_view hash, const Find &find) {
    Why why;
    auto found = find(hash, position_, why);
    Level level;
    for (Block &block : found) {
      auto parent = std::find(links_.begin(), links_.end(), block.parent_link());
      if (parent == links_.end()) continue;
      level.parents.push_back(static_cast<size_t>(parent - links_.begin()));
      level.blocks.push_back(std::move(block));
    }
    if (level.blocks.empty()) return found.empty() ? why : Why::chain;
    links_.clear();
    for (const Block &block : level.blocks) links_.push_back(block.link());
    levels_.push_back(std::move(level));
    ++position_;
    return Why::ok;
  }

  uint64_t length() const { return levels_.size(); }

  // The blocks of the whole walk as one consistent chain, oldest first.
  std::vector<Block> chain() const {
    std::vector<Block> out(levels_.size());
    size_t at = 0;
    for (size_t i = levels_.size(); i-- > 0;) {
      out[i] = levels_[i].blocks[at];
      at = levels_[i].parents[at];
    }
    return out;
  }

 private:
  struct Level {
    std::vector<Block> blocks;
    std::vector<size_t> parents;  // of each block: its place in the level before
  };
  uint64_t position_ = 0;
  std::vector<Id> links_;  // that the next block may have as its parent
  std::vector<Level> levels_;
};

}  // namespace gft
