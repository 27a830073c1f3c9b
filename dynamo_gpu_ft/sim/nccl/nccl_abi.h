// The shapes of nccl.h that the simulated library speaks, as NVIDIA's API reference gives them (2.18 to 2.32).
// Independent of the package's own bindings, so that each checks the other.
#pragma once

#include <cstddef>
#include <cstdint>

#define NCCL_API extern "C" __attribute__((visibility("default")))

using Result = int;

constexpr Result kSuccess = 0, kSystemError = 2, kInternalError = 3, kInvalidArgument = 4, kInvalidUsage = 5,
                 kRemoteError = 6, kInProgress = 7;
constexpr int kVersion = 23000;  // what it behaves like: shrink, revoke and grow are there
constexpr int kMaxRanks = 32;
constexpr int kShrinkAbort = 1;
constexpr int kUndefined = -2147483647 - 1;
constexpr unsigned kConfigMagic = 0xCAFEBEEF;

struct UniqueId {
  char internal[128];
};

// The beginning of ncclConfig_t; what a newer caller has behind it is not looked at.
struct Config {
  size_t size;
  unsigned magic;
  unsigned version;
  int blocking;
};

enum Type : int { kInt8, kUint8, kInt32, kUint32, kInt64, kUint64, kHalf, kFloat, kDouble, kBfloat, kE4m3, kE5m2, kTypes };
enum Op : int { kSum, kProd, kMax, kMin, kOps };

constexpr size_t kTypeBytes[kTypes] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
