// What the C++ test programs share: a check that names its line, payloads that are a function of the block's name, an arena.
// They see the core through gft.h only, as bind.cpp does.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../../csrc/gft.h"

#define CHECK(condition)                                                                                                   \
  do {                                                                                                                     \
    if (!(condition)) {                                                                                                    \
      std::fprintf(stderr, "%s:%d: %s does not hold; last error: %s\n", __FILE__, __LINE__, #condition, gft_last_error()); \
      std::_Exit(1);                                                                                                       \
    }                                                                                                                      \
  } while (0)

inline gft_bytes bytes_of(const std::string &text) { return {reinterpret_cast<const uint8_t *>(text.data()), text.size()}; }
inline gft_bytes no_parent() { return {nullptr, 0}; }

// splitmix64: small, and the same everywhere.
struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t limit) { return (*this)() % limit; }
};

inline void fill_payload(const std::string &name, uint8_t *to, size_t bytes) {
  Random random{0};
  for (char c : name) random.state = random.state * 1099511628211u + static_cast<unsigned char>(c);
  for (size_t i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(random());
}
inline bool is_payload(const std::string &name, const uint8_t *data, size_t bytes) {
  std::vector<uint8_t> expected(bytes);
  fill_payload(name, expected.data(), bytes);
  return std::memcmp(expected.data(), data, bytes) == 0;
}

struct TestArena {
  std::string path;
  gft_arena *arena = nullptr;

  TestArena(const char *name, gft_geometry geometry) {
    const char *folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    path = std::string(folder) + "/gft-" + name + "-" + std::to_string(getpid());
    unlink(path.c_str());
    CHECK(gft_arena_create(path.c_str(), &geometry, 0, &arena) == GFT_OK);
  }
  ~TestArena() {
    gft_arena_free(arena);
    unlink(path.c_str());
  }
};
