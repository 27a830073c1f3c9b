// Changes of mark words, each one compare-exchange that fails when the slot was given away meanwhile.
// The cap of pins is counted after they are set: a writer that dies in between leaves pins above the cap, which the eviction
// policy does not honour.
#include "pins.h"

#include <time.h>

#include <algorithm>
#include <vector>

namespace gft {
namespace {

// Replaces the mark word of this very block by what `change` makes of it; the word before, 0 when the block is gone.
template <typename Change>
uint64_t replace(const Core &core, const Sealed &sealed, Change change) {
  Word word = core.mark(sealed.slot);
  uint64_t generation = StateWord::of(sealed.word).generation, packed = word.load(std::memory_order_relaxed);
  for (;;) {
    MarkWord mark = MarkWord::of(packed);
    if (!mark.belongs_to(generation)) return 0;
    change(mark);
    if (mark.packed() == packed || word.compare_exchange_weak(packed, mark.packed(), std::memory_order_relaxed))
      return packed;
  }
}

uint64_t count_pinned(const Core &core, uint64_t now) {
  uint64_t pinned = 0;
  for (uint64_t slot = 0; slot < core.geometry().slots; ++slot) {
    MarkWord mark = MarkWord::of(core.mark(slot).load(std::memory_order_relaxed));
    if (mark.pinned_until <= now) continue;
    StateWord word = StateWord::of(core.state(slot).load(std::memory_order_relaxed));
    pinned += word.readable() && mark.belongs_to(word.generation);
  }
  return pinned;
}

}  // namespace

uint64_t wall_clock() {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec);
}

void protect(const Core &core, const Sealed &sealed) {
  replace(core, sealed, [](MarkWord &mark) { mark.is_protected = true; });
}

uint64_t pin(const Core &core, std::span<const Sealed> blocks, uint32_t until) {
  struct Before {
    const Sealed *block;
    uint32_t until;
  };
  std::vector<Before> changed;
  uint64_t now = wall_clock(), fresh = 0, pinned = 0;
  for (const Sealed &block : blocks) {
    uint32_t next = until;
    uint64_t packed =
        replace(core, block, [&](MarkWord &mark) { mark.pinned_until = next = until ? std::max(until, mark.pinned_until) : 0; });
    if (packed == 0) continue;
    pinned += next > now;
    fresh += next > now && MarkWord::of(packed).pinned_until <= now;
    changed.push_back({&block, MarkWord::of(packed).pinned_until});
  }
  if (fresh == 0) return pinned;
  CapsWord caps = CapsWord::of(Word(core.control()->caps).load(std::memory_order_relaxed));
  uint64_t cap = core.geometry().slots * caps.pinned_part / 1000, all = count_pinned(core, now);
  if (all <= cap) return pinned;
  for (const Before &before : changed) replace(core, *before.block, [&](MarkWord &mark) { mark.pinned_until = before.until; });
  fail(GFT_FULL,
       "arena %s: pinning these %zu blocks would make %llu pinned slots, at most %llu of %llu may be; unpin some, or raise "
       "pinned_share",
       core.path(), changed.size(), (unsigned long long)all, (unsigned long long)cap,
       (unsigned long long)core.geometry().slots);
}

}  // namespace gft
