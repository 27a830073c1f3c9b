// Walks a segment from commit to commit, for recovery and for readers that follow a live writer.
// Only what a whole chain of commits names is given out; the first thing that does not hold ends the walk.
#pragma once

#include "segment.h"

namespace gft::disk {

// Where a walk stands: behind the last commit that held. A fresh one starts behind the segment's header.
struct Walk {
  uint64_t next = 0;  // 0: not started
  uint64_t sequence = 0;
  uint32_t previous = 0;
};

struct Scanned {
  std::vector<Entry> entries;
  std::vector<std::string> namespaces;
};

// Goes on from `walk` and moves it. `limit` 0: as far as the file goes. Adds to `out`. Throws nothing but lack of memory: a
// read error is an end as any other.
void scan(const SegmentFile &file, uint64_t limit, Walk &walk, Scanned &out);

}  // namespace gft::disk
