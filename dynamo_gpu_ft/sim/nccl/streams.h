// What stands for CUDA's streams: an order among the groups of calls that were put on one, whatever communicator they are of.
//
// A ticket is taken when a group is put on its stream, and given back when the group is over, carried out or ended by an abort.
#pragma once

#include <atomic>
#include <cstdint>

uint64_t take_ticket(const void *stream);
void give_ticket_back(const void *stream, uint64_t ticket);
// Waits until everything that was put on the stream before is over. False when `stop` came first.
bool wait_for_turn(const void *stream, uint64_t ticket, const std::atomic<bool> &stop);
// For whoever has just set its `stop`.
void wake_waiting();
// The newest ticket of the stream, 0 if there never was one.
uint64_t newest_ticket(const void *stream);
bool all_over(const void *stream, uint64_t upto);
