"""Bringing back what is not routable: damaged copies into their own slots, uncovered experts into slots that repair chose.

The driver calls `advance` between steps: what has landed is committed by its rank first and routed to by everybody after that.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.figures import Figures
from dynamo_gpu_ft.engines.reference.experts.group import ExpertGroup
from dynamo_gpu_ft.engines.reference.experts.repairs import homeward, orphans
from dynamo_gpu_ft.engines.reference.experts.traffic import Mask
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.events import EventStream, StepDone

ATTEMPTS = 3
DAMAGED = "its bytes were damaged"
#: (shard, layer, slot) -> expert that it is to hold.
Wanted = dict[tuple[int, int, int], int]


class Mending:
    """`mask` is what is uncovered now; `log` what was brought, `refused` what was not and why. False from a method: a rank is lost."""

    def __init__(
        self, group: ExpertGroup, crew: Crew, options: Options, events: EventStream, figures: Figures
    ) -> None:  # fmt: skip
        self._group, self._crew, self._options, self._events = group, crew, options, events
        self._figures = figures
        self._wanted: Wanted = {}
        self._tries: dict[tuple[int, int, int], int] = {}
        self._loads: Sequence[Sequence[int]] = [[1] * group.homes.experts] * len(group.homes.table)
        self._landed: list[tuple[int, tell.Landed]] = []
        self._asked = 0
        self._began = 0.0
        self.mask: Mask = ()
        self.log: list[tell.Landed] = []
        self.refused: list[str] = []

    @property
    def busy(self) -> bool:
        return bool(self._wanted)

    def begin(self, loads: Sequence[Sequence[int]]) -> None:
        """After the members changed: everything that is still to be brought is planned anew, and asked for."""
        damaged = self._group.take_damaged()
        self.refused += [f"shard {s}, layer {layer}, slot {slot}: {DAMAGED}" for s, layer, slot in damaged]  # fmt: skip
        self._figures.damaged(len(damaged))
        self._figures.map(self._group.map, self._group.epoch)
        self._landed.clear()
        self._tries.clear()
        self._loads, self._wanted = loads, self._plan()
        self._began = time.monotonic()
        self._ask()

    def _plan(self) -> Wanted:
        """What is uncovered; with all ranks there, also what a loss or damage has left other than at the start."""
        group, members = self._group, sorted(self._crew.members)
        found = orphans(group.map, members, self._loads)
        if not found and len(members) == self._options.ep:
            found = homeward(group.map, group.homes, members)
        return {at: e for at, e in found.items() if self._tries.get(at, 0) <= ATTEMPTS}

    def damaged(self, hurt: Mapping[int, Collection[tuple[int, int]]]) -> None:
        """These slots may not be routed to any more; each is to be brought again."""
        self._figures.damaged(sum(map(len, hurt.values())))
        for shard, slots in hurt.items():
            for layer, slot in slots:
                physical = shard * self._options.slots + slot
                expert = self._group.map.table[layer][physical]
                self._group.map.table[layer][physical] = -1
                if expert >= 0:
                    self._want_again((shard, layer, slot), expert, DAMAGED)
        self._routed()
        self._ask()

    def heard(self, landed: Mapping[int, Sequence[tell.Landed]]) -> None:
        self._landed += [(shard, each) for shard, some in landed.items() for each in some]

    def poll(self) -> bool:
        """Asks the ranks what has landed while there are no steps. False when one is lost."""
        self._asked += 1
        number, members = self._asked, self._crew.members
        for process in members.values():
            process.send(tell.Tell(number=number))
        told = self._crew.collect(
            members,
            lambda m: isinstance(m, tell.Told) and m.number == number,
            time.monotonic() + self._options.config().step_deadline_s,
        )
        self.heard({shard: answer.landed for shard, answer in told.items()})
        if late := set(members) - set(told):
            for shard in late:
                if not any(p.why for p in members.values()):
                    members[shard].lost("it does not answer")
        return not late

    def advance(self) -> bool:
        """Commits what has landed, each rank its own, then routes to it. Blocks for the answers. False when a rank is lost."""
        if self.mask != (mask := self._group.map.uncovered()):
            self.mask = mask
        if not self._landed:
            return True
        landed, self._landed = self._landed, []
        layers: dict[int, set[int]] = {}
        for shard, each in landed:
            at = (shard, each.fill.layer, each.fill.slot)
            if self._wanted.get(at) != each.fill.expert:
                continue
            self._figures.landed(each)
            if each.error:
                self._want_again(at, each.fill.expert, each.error)
            else:
                self.log.append(each)
                layers.setdefault(shard, set()).add(each.fill.layer)
        asked = {s: p for s, p in self._crew.members.items() if s in layers}
        for shard, process in asked.items():
            process.send(tell.Commit(epoch=self._group.epoch, layers=tuple(sorted(layers[shard]))))
        told = self._crew.collect(
            asked,
            lambda m: isinstance(m, tell.Committed) and m.epoch == self._group.epoch,
            time.monotonic() + self._options.config().step_deadline_s,
            watched=self._crew.members.values(),
        )
        for shard, answer in told.items():
            for layer, slot, expert in answer.changed:
                self._group.map.table[layer][shard * self._options.slots + slot] = expert
                self._wanted.pop((shard, layer, slot), None)
                self._tries.pop((shard, layer, slot), None)
            self._figures.damaged(len(answer.damaged))
            for layer, slot in answer.damaged:
                at = (shard, layer, slot)
                self._want_again(at, self._wanted[at], "what had landed was damaged")
        self._routed()
        again = any(each.error for _, each in landed) or any(a.damaged for a in told.values())
        if again:
            self._ask()
        if len(told) < len(asked):
            for shard in set(asked) - set(told):
                if not any(p.why for p in self._crew.members.values()):
                    asked[shard].lost("it does not commit")
            return False
        if not self._wanted:
            seconds = time.monotonic() - self._began
            self._figures.refilled(seconds)
            self._events.emit(
                StepDone(epoch=self._group.epoch, step="refill", duration_s=seconds, ok=not self.mask)
            )  # fmt: skip
            self._wanted = self._plan()
            self._began = time.monotonic()
            self._ask()
        return True

    def _routed(self) -> None:
        self.mask = self._group.map.uncovered()
        self._figures.map(self._group.map, self._group.epoch)
        self._group.send_routes()

    def _want_again(self, at: tuple[int, int, int], expert: int, why: str) -> None:
        self._tries[at] = self._tries.get(at, 0) + 1
        self.refused.append(f"shard {at[0]}, layer {at[1]}, slot {at[2]}: {why}")
        if self._tries[at] > ATTEMPTS:
            self._wanted.pop(at, None)  # until the members change
        else:
            self._wanted[at] = expert

    def _ask(self) -> None:
        """Hands every rank all that it is still to bring, the most needed first."""
        group = self._group
        uncovered = set(group.map.uncovered())
        for shard, process in self._crew.members.items():
            wanted = [(at, e) for at, e in self._wanted.items() if at[0] == shard]
            wanted.sort(key=lambda each: ((each[0][1], each[1]) not in uncovered, each[0]))
            if wanted:
                process.send(
                    tell.Refill(
                        fills=tuple(group.fill(at[1], at[2], e) for at, e in wanted), epoch=group.epoch,
                        peers=group.tables(), deadline_s=self._options.config().step_deadline_s,
                    )
                )  # fmt: skip
