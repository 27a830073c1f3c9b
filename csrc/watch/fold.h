// Folds equal lines of a storm into few records: the first goes out at once, the others as one count when their window is over.
// The window doubles while the storm lasts. Memory is bounded: when there are too many kinds, the oldest is told and forgotten.
#pragma once

#include <functional>
#include <string_view>
#include <unordered_map>

#include "frame.h"
#include "line.h"
#include "record.h"

namespace gft::watch {

class Fold {
 public:
  struct Rules {
    int64_t window_ns = 1'000'000'000, longest_ns = 30'000'000'000;
    size_t room = 512;
  };
  using Out = std::function<void(Record record)>;
  Fold(Rules rules, Out out) : rules_(rules), out_(std::move(out)) {}

  // What is true of a line besides its words; each becomes a fact: "baseline", "cut", "origin" = "user", "clock".
  struct Marks {
    bool baseline = false, cut = false, user = false;
    const char *clock = nullptr;
    bool operator==(const Marks &) const = default;
  };
  void add(const Line &line, const Marks &marks, int64_t at_ns, uint64_t serial);
  // Gives out what is due. Cheap when nothing is.
  void tick(int64_t now_ns);
  // When tick has something to do; INT64_MAX: never.
  int64_t next_due() const { return next_due_; }
  void flush();

 private:
  struct Key {
    std::string_view what;
    int64_t code, pid;
    int gi, ci;
    uint64_t detail;
    Bdf bdf;
    Marks marks;
    bool operator==(const Key &) const = default;
  };
  struct Hash {
    size_t operator()(const Key &key) const;
  };
  struct Held {
    Record record;
    uint64_t state = 0, count = 0, serial = 0;
    int64_t from = 0, due = 0, window = 0, first = 0, last = 0;
  };
  void tell(Held &held);
  void forget_one();

  const Rules rules_;
  const Out out_;
  std::unordered_map<Key, Held, Hash> kinds_;
  int64_t next_due_ = INT64_MAX;
};

// A line as a record: text and facts are copied and bounded.
Record record_of(const Line &line, const Fold::Marks &marks, int64_t at_ns, uint64_t serial);

}  // namespace gft::watch
