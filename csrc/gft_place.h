/* The door to expert placement: plans, repairs, and what a placement survives. Pure functions of their arguments, integers
 * only, one thread: the same bytes on every machine. Status codes and errors follow gft.h. */
#ifndef GFT_PLACE_H
#define GFT_PLACE_H

#include "gft.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Limits: layers, experts, ranks and slots are at least 1; experts and ranks x slots at most 2^20, layers x ranks x slots at
 * most 2^28. Loads are not negative and the sum of a layer's is below 2^42. */
typedef struct gft_place_problem {
  uint32_t layers, experts, ranks, slots; /* slots of each rank, per layer */
  const int64_t *loads;                   /* [layers, experts]: tokens, or anything that is proportional to them */
  const uint8_t *alive;                   /* [ranks]: 0 for a rank that must hold nothing */
  const int32_t *domains;                 /* [4, ranks]: each rank's domain as gpu, tray, node, nvlink; nested */
  uint32_t losses;                        /* ranks that may die together */
  uint32_t level;                         /* 0..3: one whole domain of this level may die */
  uint32_t instant;                       /* 1: losses + 1 copies in as many domains; 0: one copy is enough */
  const int32_t *old;                     /* [layers, ranks * slots], -1: empty; NULL: there is no old placement */
  uint64_t max_moves;                     /* slots that may get another expert than in `old` to improve the balance */
} gft_place_problem;

/* How many experts the live ranks can hold with the copies that are asked for; at least `experts`: a plan exists. */
gft_status gft_place_room(const gft_place_problem *problem, uint64_t *experts);
/* Writes [layers, ranks * slots]. With `old`, changes as little as coverage needs and then at most `max_moves` slots.
 * GFT_FULL when there is no room. */
gft_status gft_place_plan(const gft_place_problem *problem, int32_t *table);
/* The same with `old`, where `max_moves` bounds all changes together. Experts without a live copy come first, whatever it costs; then layers
 * get the copies that are asked for, those first in which the busiest rank has most to do, the last one perhaps in part (a layer that has to
 * be placed anew: not at all); what is left of `max_moves` improves the balance. */
gft_status gft_place_recover(const gft_place_problem *problem, int32_t *table);
/* Empties the dead ranks' slots of `old` and gives every expert without a live copy a slot of one that has several, hottest first; when
 * fewer slots are left than experts, the coldest stay without. Nothing else moves. */
gft_status gft_place_repair(const gft_place_problem *problem, int32_t *table);

typedef struct gft_place_facts {
  uint64_t one[2], two[2];     /* survived, all: losses of one and of any two live ranks, over all layers jointly */
  uint64_t domains[3][2];      /* the same of one whole tray, node, NVLink domain that has live ranks */
} gft_place_facts;

/* What `table` survives while only live ranks count. `copies` and `balance` have one entry per layer: fewest live copies of an
 * expert, and mean / max of the live ranks' loads in parts per million. A copy's load is load * 2^20 / copies, rounded down. */
gft_status gft_place_examine(const gft_place_problem *problem, const int32_t *table, gft_place_facts *facts,
                             uint32_t *copies, uint32_t *balance);

#ifdef __cplusplus
}
#endif
#endif
