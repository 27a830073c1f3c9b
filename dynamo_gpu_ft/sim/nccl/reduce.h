// Sums and extremes of NCCL's element types over host memory.
#pragma once

#include "nccl_abi.h"

// into[i] = into[i] op from[i]. False for a type that this library does not add (the 8-bit floats).
bool reduce_into(void *into, const void *from, size_t count, int type, int op);
