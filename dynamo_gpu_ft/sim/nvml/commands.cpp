// The one-line commands that script the world; README.md beside this file lists them with examples.
// A command names what it does and then key=value words; a wrong one changes nothing and says what would have been right.
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <sstream>

#include "world.h"

namespace sim {
namespace {

struct Refused {
  std::string text;
};

using Words = std::vector<std::pair<std::string, std::string>>;

struct Line {
  std::string verb;
  Words words;

  explicit Line(const std::string &text) {
    std::istringstream in(text);
    in >> verb;
    for (std::string word; in >> word;) {
      const size_t at = word.find('=');
      words.emplace_back(word.substr(0, at), at == std::string::npos ? "" : word.substr(at + 1));
    }
  }
  const std::string *find(const std::string &key) const {
    for (auto &[name, value] : words)
      if (name == key) return &value;
    return nullptr;
  }
  std::string text(const std::string &key, const std::string &otherwise) const {
    const std::string *found = find(key);
    return found ? *found : otherwise;
  }
  uint64_t number(const std::string &key, const std::string &value) const {
    char *end = nullptr;
    const uint64_t out = std::strtoull(value.c_str(), &end, 0);
    if (value.empty() || *end) throw Refused{verb + ": " + key + "=" + value + " is no number"};
    return out;
  }
  uint64_t number(const std::string &key) const {
    const std::string *found = find(key);
    if (!found) throw Refused{verb + " needs " + key + "=NUMBER"};
    return number(key, *found);
  }
  uint64_t number_or(const std::string &key, uint64_t otherwise) const { return find(key) ? number(key) : otherwise; }
  double seconds(const std::string &key) const {
    const std::string *found = find(key);
    return found ? std::atof(found->c_str()) : 0.0;
  }
};

std::vector<Gpu *> gpus_of(World &world, const Line &line) {
  std::vector<Gpu *> out;
  if (line.text("gpu", "") == "*") {
    for (Gpu &gpu : world.gpus) out.push_back(&gpu);
    return out;
  }
  const uint64_t index = line.number("gpu");
  Gpu *found = gpu_at(world, static_cast<int>(std::min<uint64_t>(index, kMaxGpus)));
  if (!found)
    throw Refused{line.verb + ": there is no gpu=" + std::to_string(index) + " among " + std::to_string(world.gpus.size())};
  return {found};
}

// Short names for what is scripted most; anything else is a pattern over NVML's own names.
std::string call_of(const Line &line) {
  static const std::map<std::string, std::string> known = {{"fields", "nvmlDeviceGetFieldValues"},
                                                           {"wait", "nvmlEventSetWait*"},
                                                           {"register", "nvmlDeviceRegisterEvents"},
                                                           {"init", "nvmlInit*"},
                                                           {"handle", "nvmlDeviceGetHandle*"},
                                                           {"free", "nvmlEventSetFree"},
                                                           {"create", "nvmlEventSetCreate"},
                                                           {"system", "nvmlSystemEvent*"},
                                                           {"supported", "nvmlDeviceGetSupportedEventTypes"}};
  const std::string *word = line.find("call");
  if (!word || word->empty())
    throw Refused{line.verb + " needs call=NAME, a pattern, or one of: fields wait register init handle free"};
  auto found = known.find(*word);
  return found == known.end() ? *word : found->second;
}

Script script_of(World &world, const Line &line) {
  Script script;
  script.call = call_of(line);
  script.gpu = line.find("gpu") && line.text("gpu", "") != "*" ? gpus_of(world, line)[0]->index : -1;
  return script;
}

void release(World &world, const Line &line) {
  const bool all = !line.find("call");
  const int gpu = line.find("gpu") ? gpus_of(world, line)[0]->index : -1;
  auto fits = [&](const Script &script) { return (all || script.call == call_of(line)) && (gpu < 0 || script.gpu == gpu); };
  std::erase_if(world.wedges, fits);
  std::erase_if(world.answers, fits);
}

std::string state_of(World &world, const Line &line) {
  std::ostringstream out;
  const int gpu = line.find("gpu") ? static_cast<int>(line.number("gpu")) : -2;
  if (line.verb == "calls") {
    for (auto &[which, count] : world.calls)
      if (gpu == -2 || which.second == gpu) out << which.first << " gpu=" << which.second << " count=" << count << "\n";
    return out.str();
  }
  out << "users=" << world.users << " gpus=" << world.gpus.size() << " wedges=" << world.wedges.size() << "\n";
  for (auto &[handle, set] : world.sets) {
    out << "set queued=" << set->events.size() << " dropped=" << set->dropped;
    for (auto &[index, mask] : set->masks) out << " gpu" << index << "=" << mask;
    out << "\n";
  }
  return out.str();
}

// What only those who are there notice; the number is of sets that took it.
using Happening = std::function<int(World &, const Line &)>;
const std::map<std::string, Happening> &happenings() {
  static const std::map<std::string, Happening> all = {
      {"xid",
       [](World &world, const Line &line) {
         int heard = 0;
         const uint64_t code = line.number("code");
         for (Gpu *gpu : gpus_of(world, line))
           heard += world.post(gpu->index, kXidBit, code, static_cast<unsigned>(line.number_or("gi", kUnattributed)),
                               static_cast<unsigned>(line.number_or("ci", kUnattributed)));
         return heard;
       }},
      {"event",
       [](World &world, const Line &line) {
         int heard = 0;
         const uint64_t type = line.number("type");
         const uint64_t data = line.text("data", "") == "now" ? static_cast<uint64_t>(now_ns()) : line.number_or("data", 0);
         for (Gpu *gpu : gpus_of(world, line))
           heard += world.post(gpu->index, type, data, static_cast<unsigned>(line.number_or("gi", kUnattributed)),
                               static_cast<unsigned>(line.number_or("ci", kUnattributed)));
         return heard;
       }},
      {"unbind", [](World &world, const Line &line) { return world.post_system(gpus_of(world, line)[0]->index, 1); }},
      {"bind", [](World &world, const Line &line) { return world.post_system(gpus_of(world, line)[0]->index, 2); }}};
  return all;
}

// What lasts: also for processes that come later.
using Change = std::function<void(World &, const Line &)>;
const std::map<std::string, Change> &changes() {
  static const std::map<std::string, Change> all = {
      {"world",
       [](World &world, const Line &line) {
         if (world.users) throw Refused{"world: only before nvmlInit; put it first into the control file"};
         const std::string profile = line.text("profile", "h100");
         if (profile != "h100" && profile != "b200" && profile != "gb200" && profile != "pcie")
           throw Refused{"world: profile=" + profile + "; there are h100 b200 gb200 pcie"};
         world.become(static_cast<int>(line.number_or("gpus", 8)), profile, line.text("driver", "595.45.04"));
       }},
      {"recovery",
       [](World &world, const Line &line) {
         for (Gpu *gpu : gpus_of(world, line)) gpu->values["230"] = line.number("action");
       }},
      {"set",
       [](World &world, const Line &line) {
         auto chosen = gpus_of(world, line);
         for (auto &[name, value] : line.words)
           if (name != "gpu")
             for (Gpu *gpu : chosen) gpu->values[name] = line.number(name, value);
       }},
      {"unset",
       [](World &world, const Line &line) {
         for (Gpu *gpu : gpus_of(world, line))
           for (auto &[name, value] : line.words) gpu->values.erase(name);
       }},
      {"lost",
       [](World &world, const Line &line) {
         for (Gpu *gpu : gpus_of(world, line)) gpu->lost = true;
       }},
      {"found",
       [](World &world, const Line &line) {
         for (Gpu *gpu : gpus_of(world, line)) gpu->lost = false;
       }},
      {"supported",
       [](World &world, const Line &line) {
         for (Gpu *gpu : gpus_of(world, line)) gpu->supported = line.number("mask");
       }},
      {"queue", [](World &world, const Line &line) { world.queue_limit = std::max<uint64_t>(line.number("size"), 1); }},
      {"return",
       [](World &world, const Line &line) {
         Script script = script_of(world, line);
         script.code = static_cast<int>(line.number("code"));
         script.left = line.find("count") ? static_cast<int64_t>(line.number("count")) : -1;
         world.answers.push_back(script);
       }},
      {"wedge",
       [](World &world, const Line &line) {
         Script script = script_of(world, line);
         if (line.find("seconds")) script.until_ns = now_ns() + static_cast<int64_t>(line.seconds("seconds") * 1e9);
         world.wedges.push_back(script);
       }},
      {"release", release},
      {"process",
       [](World &world, const Line &line) {
         for (Gpu *gpu : gpus_of(world, line))
           gpu->processes.push_back({static_cast<unsigned>(line.number("pid")), line.number_or("memory", 1 << 30),
                                     static_cast<unsigned>(line.number_or("gi", kUnattributed)),
                                     static_cast<unsigned>(line.number_or("ci", kUnattributed))});
       }},
      {"noprocess",
       [](World &world, const Line &line) {
         for (Gpu *gpu : gpus_of(world, line)) gpu->processes.clear();
       }},
      {"mig",
       [](World &world, const Line &line) {
         Gpu &gpu = *gpus_of(world, line)[0];
         if (gpu.migs.size() >= kMaxMig) throw Refused{"mig: a GPU has at most 7 instances"};
         gpu.migs.push_back({line.text("uuid", "MIG-" + gpu.uuid.substr(4) + "-" + std::to_string(gpu.migs.size())),
                             static_cast<unsigned>(line.number("gi")), static_cast<unsigned>(line.number_or("ci", 0))});
       }},
      {"reset", [](World &world, const Line &) {
         world.wedges.clear();
         world.answers.clear();
         const std::string driver = world.driver.substr(0, world.driver.find(' '));
         world.become(static_cast<int>(world.gpus.size()), world.blackwell ? "b200" : world.links ? "h100" : "pcie", driver);
       }}};
  return all;
}

// Many XIDs, all at once or spread over some time; without the lock in between.
int burst(const Line &line) {
  const uint64_t count = line.number("count"), over_ns = line.number_or("over_ms", 0) * 1'000'000;
  const int64_t began = now_ns();
  int heard = 0;
  for (uint64_t i = 0; i < count; ++i) {
    if (over_ns) {
      const int64_t due = began + static_cast<int64_t>(over_ns * i / count);
      struct timespec until = {due / 1'000'000'000, due % 1'000'000'000};
      if (due > now_ns() + 50'000) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
    }
    std::lock_guard lock(world().mutex);
    for (Gpu *gpu : gpus_of(world(), line))
      heard += world().post(gpu->index, line.number_or("type", kXidBit), line.number("code"), kUnattributed, kUnattributed);
  }
  return heard;
}

}  // namespace

bool command(const std::string &text, std::string *answer, bool replay) {
  const Line line(text.substr(0, text.find('#')));
  answer->clear();
  if (line.verb.empty()) return true;
  try {
    auto happening = happenings().find(line.verb);
    if (line.verb == "burst" || happening != happenings().end()) {
      if (replay) return true;
      int heard = 0;
      if (line.verb == "burst") {
        heard = burst(line);
      } else {
        std::lock_guard lock(world().mutex);
        heard = happening->second(world(), line);
      }
      *answer = "heard=" + std::to_string(heard);
      return true;
    }
    std::lock_guard lock(world().mutex);
    if (line.verb == "state" || line.verb == "calls") {
      *answer = state_of(world(), line);
      return true;
    }
    auto change = changes().find(line.verb);
    if (change == changes().end()) throw Refused{line.verb + ": there is no such command"};
    change->second(world(), line);
    world().changed.notify_all();
    return true;
  } catch (const Refused &why) {
    *answer = why.text;
    return false;
  }
}

}  // namespace sim

// For programs that hold the library themselves: 0, or 1 with what was wrong with the line in `answer`.
NVML_API int fakeNvmlCommand(const char *line, char *answer, size_t size) {
  std::string said;
  const bool good = sim::command(line ? line : "", &said);
  if (answer && size) {
    const size_t length = std::min(said.size(), size - 1);
    std::copy_n(said.data(), length, answer);
    answer[length] = 0;
  }
  return good ? 0 : 1;
}
