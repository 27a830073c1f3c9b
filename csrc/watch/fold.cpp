// The table of kinds that are being folded, keyed by all that makes two lines one fault.
// Times are whatever clock the caller reads the log by; one that jumps back begins anew.
#include "fold.h"

#include <algorithm>
#include <cstring>

#include "text.h"

namespace gft::watch {
namespace {
constexpr size_t kTextMost = 512, kFactMost = 256;
}

Record record_of(const Line &line, const Fold::Marks &marks, int64_t at_ns, uint64_t serial) {
  Record out;
  bool fabric = std::strncmp(line.what, "fabric", 6) == 0;
  out.source = fabric ? "fabric_log" : "kernel_log";
  out.what = line.what;
  out.at_ns = out.last_ns = at_ns;
  out.serial = serial;
  out.code = line.code;
  out.gi = line.gi;
  out.ci = line.ci;
  out.pid = line.pid;
  out.bdf = line.bdf.view();
  out.uuid = line.uuid.substr(0, kFactMost);
  out.text = line.text.substr(0, kTextMost);
  out.facts.reserve(line.fact_count + 3);
  for (size_t i = 0; i < line.fact_count; ++i)
    out.facts.emplace_back(line.facts[i].name, line.facts[i].value.substr(0, kFactMost));
  if (marks.baseline) out.facts.emplace_back("baseline", "1");
  if (marks.cut && line.fact("cut").empty()) out.facts.emplace_back("cut", "1");
  if (marks.user && !fabric) out.facts.emplace_back("origin", "user");
  if (marks.clock) out.facts.emplace_back("clock", marks.clock);
  return out;
}

size_t Fold::Hash::operator()(const Key &key) const {
  uint64_t hash = mixed(mixed(key.detail, key.bdf.view()), key.what);
  for (int64_t value : {key.code, key.pid, int64_t{key.gi} << 32 | (key.ci & 0xffff), int64_t{key.marks.baseline}})
    hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u, hash ^= hash >> 29;
  return hash;
}

void Fold::add(const Line &line, const Marks &marks, int64_t at_ns, uint64_t serial) {
  // Who caused a change of state does not make it another state.
  Key key{line.what, line.code, line.state ? -1 : line.pid, line.gi, line.ci, line.detail, line.bdf, marks};
  auto found = kinds_.find(key);
  if (found == kinds_.end()) {
    if (kinds_.size() >= rules_.room) forget_one();
    found = kinds_.try_emplace(key).first;
  } else {
    Held &held = found->second;
    bool again = line.state == held.state && at_ns >= held.from - held.window && (at_ns < held.due || held.count);
    if (again) {
      if (at_ns >= held.due) tell(held);
      if (!held.count) {
        held.first = at_ns;
        held.serial = serial;
      }
      ++held.count;
      held.last = std::max(held.last, at_ns);
      next_due_ = std::min(next_due_, held.due);
      return;
    }
    tell(held);
  }
  Held &held = found->second;
  held.record = record_of(line, marks, at_ns, serial);
  held.state = line.state;
  held.from = held.last = at_ns;
  held.window = rules_.window_ns;
  held.due = at_ns + held.window;
  next_due_ = std::min(next_due_, held.due);
  out_(held.record);
}

// Gives out what was counted, if anything was, and begins the next window.
void Fold::tell(Held &held) {
  if (!held.count) return;
  Record record = held.record;
  record.at_ns = held.first;
  record.last_ns = held.last;
  record.count = held.count;
  record.serial = held.serial;
  held.count = 0;
  held.window = std::min(held.window * 2, rules_.longest_ns);
  held.from = held.last;
  held.due = held.last + held.window;
  out_(std::move(record));
}

void Fold::tick(int64_t now_ns) {
  if (now_ns < next_due_) return;
  next_due_ = INT64_MAX;
  for (auto at = kinds_.begin(); at != kinds_.end();) {
    Held &held = at->second;
    if (now_ns >= held.due && !held.count) {
      at = kinds_.erase(at);
      continue;
    }
    if (now_ns >= held.due) {
      tell(held);
      held.due = std::max(held.due, now_ns + 1);
    }
    next_due_ = std::min(next_due_, held.due);
    ++at;
  }
}

void Fold::forget_one() {
  auto oldest = std::min_element(kinds_.begin(), kinds_.end(),
                                 [](const auto &a, const auto &b) { return a.second.last < b.second.last; });
  tell(oldest->second);
  kinds_.erase(oldest);
}

void Fold::flush() {
  for (auto &[key, held] : kinds_) tell(held);
  kinds_.clear();
  next_due_ = INT64_MAX;
}

}  // namespace gft::watch
