// Placement under lying problems and against brute force, and digests of what it answers: the same at every level of optimisation, with
// any compiler. Sees the core through gft_place.h only.
#include "../../../csrc/gft_place.h"

#include <algorithm>

#include "support.h"

struct World {
  uint32_t layers, experts, ranks, slots, losses, level, instant;
  std::vector<int64_t> loads;
  std::vector<uint8_t> alive;
  std::vector<int32_t> domains, old;

  World(Random &random, bool small) {
    layers = 1 + static_cast<uint32_t>(random.below(3));
    ranks = 1 + static_cast<uint32_t>(random.below(small ? 7 : 40));
    experts = 1 + static_cast<uint32_t>(random.below(small ? 9 : 100));
    slots = 1 + static_cast<uint32_t>(random.below(2 * experts / ranks + 3));
    losses = static_cast<uint32_t>(random.below(3));
    level = static_cast<uint32_t>(random.below(4));
    instant = static_cast<uint32_t>(random.below(2));
    for (uint32_t i = 0; i < layers * experts; ++i) loads.push_back(static_cast<int64_t>(random.below(3) ? random.below(1000) : random.below(30)));
    for (uint32_t r = 0; r < ranks; ++r) alive.push_back(random.below(6) != 0);
    alive[random.below(ranks)] = 1;
    for (uint32_t size : {1u, 2u, 4u, 8u})
      for (uint32_t r = 0; r < ranks; ++r) domains.push_back(static_cast<int32_t>(r / size));
    if (random.below(2))
      for (uint32_t i = 0; i < layers * width(); ++i) old.push_back(static_cast<int32_t>(random.below(experts + 1)) - 1);
  }
  uint32_t width() const { return ranks * slots; }
  gft_place_problem problem(uint64_t max_moves) const {
    return {layers,           experts, ranks,   slots,  loads.data(), alive.data(), domains.data(), losses,
            level,            instant, old.empty() ? nullptr : old.data(), max_moves};
  }
  // Live ranks of each expert of one layer.
  std::vector<std::vector<uint32_t>> holders(const std::vector<int32_t> &table, uint32_t layer) const {
    std::vector<std::vector<uint32_t>> found(experts);
    for (uint32_t s = 0; s < width(); ++s)
      if (int32_t e = table[layer * width() + s]; e >= 0 && alive[s / slots]) found[static_cast<size_t>(e)].push_back(s / slots);
    return found;
  }
};

static uint64_t sum = 1469598103934665603u;
static int planned = 0, full = 0, repaired = 0;

static void digest(const std::vector<int32_t> &table) {
  for (int32_t cell : table) sum = (sum ^ static_cast<uint32_t>(cell)) * 1099511628211u;
}

static void check_plan(const World &world, const std::vector<int32_t> &table) {
  for (uint32_t layer = 0; layer < world.layers; ++layer)
    for (auto &ranks : world.holders(table, layer)) {
      CHECK(!ranks.empty());
      auto one_each = ranks;
      one_each.erase(std::unique(one_each.begin(), one_each.end()), one_each.end());
      CHECK(one_each.size() == ranks.size());
      if (!world.instant) continue;
      std::vector<int32_t> homes;
      for (uint32_t r : ranks) homes.push_back(world.domains[world.level * world.ranks + r]);
      std::sort(homes.begin(), homes.end());
      homes.erase(std::unique(homes.begin(), homes.end()), homes.end());
      CHECK(homes.size() > world.losses);
    }
}

static void check_facts(const World &world, const gft_place_problem &problem, const std::vector<int32_t> &table) {
  gft_place_facts facts;
  std::vector<uint32_t> copies(world.layers), balance(world.layers);
  CHECK(gft_place_examine(&problem, table.data(), &facts, copies.data(), balance.data()) == GFT_OK);
  uint64_t one = 0, two = 0;
  auto survives = [&](uint32_t a, uint32_t b) {
    for (uint32_t layer = 0; layer < world.layers; ++layer)
      for (auto &ranks : world.holders(table, layer))
        if (std::all_of(ranks.begin(), ranks.end(), [&](uint32_t r) { return r == a || r == b; })) return false;
    return true;
  };
  for (uint32_t a = 0; a < world.ranks; ++a)
    for (uint32_t b = a; b < world.ranks; ++b)
      if (world.alive[a] && world.alive[b]) (a == b ? one : two) += survives(a, b);
  CHECK(facts.one[0] == one && facts.two[0] == two);
  for (uint32_t ppm : balance) CHECK(ppm <= 1000000);
}

// What a recovery changes is what it may, orphans apart, and no expert is without a copy while there is room.
static void check_recovery(const World &world, const std::vector<int32_t> &table, uint64_t allowed) {
  uint64_t changed = 0, orphans = 0, room = 0;
  for (uint8_t lives : world.alive) room += lives ? world.slots : 0;
  for (uint32_t layer = 0; layer < world.layers; ++layer) {
    for (auto &ranks : world.holders(world.old, layer)) orphans += ranks.empty();
    uint64_t held = 0;
    for (auto &ranks : world.holders(table, layer)) held += !ranks.empty();
    CHECK(held == std::min<uint64_t>(world.experts, room));
  }
  for (size_t i = 0; i < table.size(); ++i) {
    CHECK(table[i] < 0 || world.alive[i % world.width() / world.slots]);
    changed += table[i] >= 0 && table[i] != world.old[i];
  }
  CHECK(changed <= std::max(orphans, allowed));
}

static void one_world(Random &random, bool small) {
  World world(random, small);
  auto problem = world.problem(random.below(2) ? UINT64_MAX : random.below(10));
  std::vector<int32_t> table(world.layers * world.width(), -7);
  gft_status status = gft_place_plan(&problem, table.data());
  if (status == GFT_OK) {
    ++planned;
    check_plan(world, table);
    if (small) check_facts(world, problem, table);
    digest(table);
  } else {
    CHECK(status == GFT_FULL || (status == GFT_INVALID && world.losses > world.ranks));
    ++full;
  }
  if (world.old.empty()) return;
  std::fill(table.begin(), table.end(), -7);
  if (status == GFT_OK) {
    CHECK(gft_place_recover(&problem, table.data()) == GFT_OK);
    check_recovery(world, table, problem.max_moves);
    digest(table);
  }
  status = gft_place_repair(&problem, table.data());
  if (status != GFT_OK) return;
  ++repaired;
  uint64_t room = 0;
  for (uint8_t lives : world.alive) room += lives ? world.slots : 0;
  for (uint32_t layer = 0; layer < world.layers; ++layer) {
    uint64_t held = 0;
    for (auto &ranks : world.holders(table, layer)) held += !ranks.empty();
    CHECK(held == std::min<uint64_t>(world.experts, room));
  }
  digest(table);
}

// Every field in turn with a value that it must not have: an error, and nothing read out of bounds.
static void lies(Random &random) {
  World world(random, true);
  std::vector<int32_t> table(world.layers * world.width());
  auto refused = [&](auto change) {
    World own = world;
    if (own.old.empty()) own.old.assign(own.layers * own.width(), 0);
    auto problem = own.problem(0);
    change(own, problem);
    CHECK(gft_place_plan(&problem, table.data()) == GFT_INVALID);
    CHECK(gft_place_recover(&problem, table.data()) == GFT_INVALID);
    CHECK(gft_place_repair(&problem, table.data()) == GFT_INVALID);
    CHECK(std::strlen(gft_last_error()) > 20);
  };
  refused([](World &, auto &p) { p.layers = 0; });
  refused([](World &, auto &p) { p.experts = 0; });
  refused([](World &, auto &p) { p.ranks = 0; });
  refused([](World &, auto &p) { p.slots = 0; });
  refused([](World &, auto &p) { p.slots = UINT32_MAX; });
  refused([](World &, auto &p) { p.experts = UINT32_MAX; });
  refused([](World &, auto &p) { p.layers = UINT32_MAX; });
  refused([](World &, auto &p) { p.level = 4; });
  refused([](World &, auto &p) { p.losses = UINT32_MAX; });
  refused([](World &w, auto &) { w.loads[0] = -1; });
  refused([](World &w, auto &) { w.loads[0] = INT64_MAX; });
  refused([](World &w, auto &) { w.loads.back() = int64_t{1} << 42; });
  refused([](World &w, auto &) { w.old.back() = static_cast<int32_t>(w.experts); });
  refused([](World &w, auto &) { w.old.front() = -2; });
  refused([](World &w, auto &) { std::fill(w.alive.begin(), w.alive.end(), uint8_t{0}); });
}

int main(int argc, char **argv) {
  uint64_t cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 2000;
  // The digest is of seed 1; another seed tries other worlds.
  Random random{argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1};
  for (uint64_t i = 0; i < cases; ++i) one_world(random, i % 4 != 0);
  for (int i = 0; i < 50; ++i) lies(random);
  std::printf("placement: ok, %d planned, %d without room, %d repaired, digest %016llx\n", planned, full, repaired,
              static_cast<unsigned long long>(sum));
  return 0;
}
