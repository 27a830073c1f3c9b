"""Bringing experts while steps go on: damaged copies into their own slots, and what `Planning` says: orphans, then copies and balance.

The driver calls `advance` between steps: what has landed is committed by its rank first and routed to by everybody after that.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.figures import Figures
from dynamo_gpu_ft.engines.reference.experts.group import ExpertGroup
from dynamo_gpu_ft.engines.reference.experts.planning import Planning, Stage
from dynamo_gpu_ft.engines.reference.experts.repairs import Wanted, keeps
from dynamo_gpu_ft.engines.reference.experts.traffic import Mask
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.events import EventStream, StepDone
from dynamo_gpu_ft.experts.base import Placement

ATTEMPTS = 3
DAMAGED = "its bytes were damaged"


class Mending:
    """`mask` is what is uncovered now; `log` what was brought, with the stage that asked for it, `refused` what was not and why. False from a
    method: a rank is lost."""

    def __init__(
        self, group: ExpertGroup, crew: Crew, options: Options, events: EventStream, figures: Figures, planning: Planning
    ) -> None:  # fmt: skip
        self._group, self._crew, self._options, self._events = group, crew, options, events
        self._figures, self._planning = figures, planning
        self._stage: Stage = ""
        self._wanted: Wanted = {}
        self._landed: Wanted = {}  # of those wanted: staged by their rank, for the next commit
        self._tries: dict[tuple[int, int, int], int] = {}
        self._again = False  # something has to be asked for once more
        self._now = group.map.placement
        self._quiet: Placement | None = None  # the map for which nothing was left to be done
        self._asked = self._foretold = 0
        self._foreseen: dict[int, int] = {}
        self._began = 0.0
        self.mask: Mask = ()
        self.log: list[tuple[Stage, tell.Landed]] = []
        self.refused: list[str] = []

    @property
    def busy(self) -> bool:
        return bool(self._wanted) or self._planning.busy

    @property
    def foreseen(self) -> bool:
        """Whether all ranks have said (`poll`) that their tables foresee every next loss from the map that holds."""
        told = [self._foreseen.get(shard, 0) == self._foretold for shard in self._crew.members]
        return not self._planning.looking(self._now) and all(told)

    def begin(self, *, owed: bool) -> None:
        """After the members changed: what is still to be brought is planned anew, uncovered experts are asked for. `owed`: copies and balance
        are to be restored behind that."""
        damaged = self._group.take_damaged()
        self.refused += [f"shard {s}, layer {layer}, slot {slot}: {DAMAGED}" for s, layer, slot in damaged]  # fmt: skip
        self._figures.damaged(len(damaged))
        self._figures.map(self._group.map, self._group.epoch)
        self._stage, self._wanted, self._again = "", {}, False
        self._landed.clear()
        self._tries.clear()
        self._foreseen.clear()
        gone = set(range(self._options.ep)) - set(self._crew.members)
        self._planning.begin(gone, owed=owed)
        self._now, self._quiet = self._group.map.placement, None
        self._go_on()

    def place(self, goal: Placement) -> None:
        """Leads to this placement in the background."""
        self._planning.place(goal)
        self._quiet = None

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
        """What ranks say of the fills that are over."""
        for shard, some in landed.items():
            for each in some:
                at = (shard, each.fill.layer, each.fill.slot)
                if self._wanted.get(at) != each.fill.expert:
                    continue
                self._figures.landed(each)
                if each.error:
                    self._want_again(at, each.fill.expert, each.error)
                else:
                    self.log.append((self._stage, each))
                    self._landed[at] = each.fill.expert

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
        self._foreseen |= {shard: answer.foreseen for shard, answer in told.items()}
        return self._all_there(members, told, "it does not answer")

    def advance(self) -> bool:
        """Commits what has landed, each rank its own, then routes to it; asks for what is next. Blocks for the answers. False when a rank is
        lost."""
        if self.mask != (mask := self._group.map.uncovered()):
            self.mask = mask
        if self._landed and not self._commit():
            return False
        if self._again:
            self._ask()
        if not self._wanted:
            self._go_on()
        if not self._wanted and (found := self._planning.look_ahead(self._now)) is not None:
            self._foretold += 1
            order = tell.Foresee(number=self._foretold, placement=found[0], ahead=found[1])
            for process in self._crew.members.values():
                process.send(order)
        return True

    # -- details -------------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """What is next when nothing is under way."""
        if self._quiet is self._now and not self._planning.busy:
            return
        given_up = {at for at, times in self._tries.items() if times > ATTEMPTS}
        stage, self._wanted = self._planning.next(self._now, given_up)
        if self._stage and stage != self._stage:
            seconds = time.monotonic() - self._began
            if self._stage == "refill":
                self._figures.refilled(seconds)
            self._events.emit(
                StepDone(epoch=self._group.epoch, step=self._stage, duration_s=seconds, ok=not self.mask)
            )  # fmt: skip
        if stage != self._stage:
            self._stage, self._began = stage, time.monotonic()
        self._quiet = None if self._wanted else self._now
        if self._wanted:
            self._ask()

    def _commit(self) -> bool:
        layers = self._committable()
        asked: dict[int, set[int]] = {}
        for shard, layer, _ in self._landed:
            if layer in layers:
                asked.setdefault(shard, set()).add(layer)
        members = {s: p for s, p in self._crew.members.items() if s in asked}
        for shard, process in members.items():
            process.send(tell.Commit(epoch=self._group.epoch, layers=tuple(sorted(asked[shard]))))
        told = self._crew.collect(
            members,
            lambda m: isinstance(m, tell.Committed) and m.epoch == self._group.epoch,
            time.monotonic() + self._options.config().step_deadline_s,
            watched=self._crew.members.values(),
        )
        for shard, answer in told.items():
            for layer, slot, expert in answer.changed:
                at = (shard, layer, slot)
                self._group.map.table[layer][shard * self._options.slots + slot] = expert
                for known in (self._wanted, self._landed, self._tries):
                    known.pop(at, None)
            self._figures.damaged(len(answer.damaged))
            for layer, slot in answer.damaged:
                at = (shard, layer, slot)
                self._landed.pop(at, None)
                if at in self._wanted:
                    self._want_again(at, self._wanted[at], "what had landed was damaged")
        if members:
            self._routed()
        return self._all_there(members, told, "it does not commit")

    def _committable(self) -> set[int]:
        """Layers in which what has landed may be committed: those where no expert loses its last slot by it. What would, waits for the rest
        of its wave; where nothing more will come, it is given up."""
        slots, found = self._options.slots, set()
        for layer in {at[1] for at in self._landed}:
            staged = {s * slots + slot: e for (s, on, slot), e in self._landed.items() if on == layer}  # fmt: skip
            if keeps(self._group.map.table[layer], staged):
                found.add(layer)
            elif len(staged) == sum(at[1] == layer for at in self._wanted):
                for at in [at for at in self._landed if at[1] == layer]:
                    self._tries[at] = ATTEMPTS + 1
                    del self._landed[at], self._wanted[at]
        return found

    def _routed(self) -> None:
        self.mask = self._group.map.uncovered()
        self._now = self._group.map.placement
        self._figures.map(self._group.map, self._group.epoch)
        self._group.send_routes()

    def _all_there(self, asked: Mapping[int, object], told: Mapping[int, object], why: str) -> bool:
        late = set(asked) - set(told)
        for shard in late:
            if not any(p.why for p in self._crew.members.values()):
                self._crew.members[shard].lost(why)
        return not late

    def _want_again(self, at: tuple[int, int, int], expert: int, why: str) -> None:
        self._tries[at] = self._tries.get(at, 0) + 1
        self.refused.append(f"shard {at[0]}, layer {at[1]}, slot {at[2]}: {why}")
        if self._tries[at] > ATTEMPTS:
            self._wanted.pop(at, None)  # until the members change
        else:
            self._wanted[at], self._again = expert, True
            if not self._stage:
                self._stage, self._began = "refill", time.monotonic()

    def _ask(self) -> None:
        """Hands every rank all that it is still to bring, the most needed first. Ranks drop what they had staged."""
        group, self._again = self._group, False
        self._landed.clear()
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
