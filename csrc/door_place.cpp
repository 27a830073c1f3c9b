// The door's part for expert placement. One short body per function of gft_place.h; the promises are there.
#include "gft_place.h"

#include "door.h"
#include "place/plan.h"

using gft::behind_wall;

namespace {

size_t cells(const gft_place_problem &p) { return size_t{p.layers} * p.ranks * p.slots; }

}  // namespace

gft_status gft_place_room(const gft_place_problem *problem, uint64_t *experts) {
  return behind_wall([&] {
    gft::place::check(*problem);
    *experts = gft::place::room_of(*problem);
  });
}

gft_status gft_place_plan(const gft_place_problem *problem, int32_t *table) {
  return behind_wall([&] {
    gft::place::check(*problem);
    gft::place::plan(*problem, {table, cells(*problem)}, false);
  });
}

gft_status gft_place_recover(const gft_place_problem *problem, int32_t *table) {
  return behind_wall([&] {
    gft::place::check(*problem);
    if (!problem->old) gft::fail(GFT_INVALID, "a recovery of no placement; give the old one");
    gft::place::plan(*problem, {table, cells(*problem)}, true);
  });
}

gft_status gft_place_repair(const gft_place_problem *problem, int32_t *table) {
  return behind_wall([&] {
    gft::place::check(*problem);
    if (!problem->old) gft::fail(GFT_INVALID, "a repair of no placement; give the old one");
    gft::place::repair(*problem, {table, cells(*problem)});
  });
}

gft_status gft_place_examine(const gft_place_problem *problem, const int32_t *table, gft_place_facts *facts, uint32_t *copies,
                             uint32_t *balance) {
  return behind_wall([&] {
    gft::place::check(*problem);
    gft::place::examine(*problem, {table, cells(*problem)}, *facts, {copies, problem->layers}, {balance, problem->layers});
  });
}
