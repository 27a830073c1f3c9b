// Keeps a forked child from being taken for the owner of its parent's locks, threads and slots.
// Handles remember the generation they were made in; a child has another one, and its copies of our descriptors are closed.
#pragma once

#include <cstdint>

namespace gft {

// From now on the generation grows by one in the child of every fork(). Whoever compares generations calls it first.
void guard_forks();
// Async-signal-safe to read.
uint64_t fork_generation() noexcept;

// open() and close() for descriptors that children must not keep: a lock of an open file description would otherwise live
// on in a child after its holder died. NOTE: a child made by vfork or a bare clone keeps it until exec (close-on-exec).
int open_guarded(const char *path, int flags, int mode = 0);
// Does nothing in a forked child that was born after `made_in`: there the descriptor is closed and may be another file.
void close_guarded(int descriptor, uint64_t made_in) noexcept;

}  // namespace gft
