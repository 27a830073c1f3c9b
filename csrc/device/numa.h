// Where a device is attached and what the kernel allows for memory near it; all of it hints, read from sysfs.
// Used by the registration's thread, which should touch pages from the right processors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gft::device {

int node_of_pci(int domain, int bus, int device);  // -1: unknown, or one node only
// Lets this thread run on the node's processors only. False when it cannot; then nothing changes.
bool run_on_node(int node) noexcept;
// Asks for huge pages where shared memory may have them by advice. True when the kernel took the advice.
bool advise_huge_pages(uint8_t *from, size_t bytes) noexcept;
// Maps the pages of a range into this process, writable. Best effort.
void populate(uint8_t *from, size_t bytes) noexcept;

}  // namespace gft::device
