// Range checks, then one store.
#include "limits.h"

namespace gft {

void set_caps(const Core &core, uint32_t protected_part, uint32_t pinned_part) {
  core.check_writable();
  if (protected_part > 1000 || pinned_part > CapsWord::kMostPinned)
    fail(GFT_INVALID,
         "caps of %u and %u thousandths for arena %s; protected blocks may have at most 1000, pinned ones at most %llu, so that "
         "new blocks always find room",
         protected_part, pinned_part, core.path(), (unsigned long long)CapsWord::kMostPinned);
  Word(core.control()->caps).store(CapsWord{protected_part, pinned_part}.packed(), std::memory_order_relaxed);
}

void set_quota(Core &core, uint32_t name_space, uint64_t slots) {
  core.check_writable();
  (void)core.name_space(name_space);  // GFT_INVALID when there is no such namespace
  if (slots > core.geometry().slots)
    fail(GFT_INVALID, "a quota of %llu slots for namespace %u; arena %s has %llu slots, 0 means no limit",
         (unsigned long long)slots, name_space, core.path(), (unsigned long long)core.geometry().slots);
  Word(core.namespace_record(name_space)->quota).store(slots, std::memory_order_relaxed);
}

}  // namespace gft
