"""What one reading is, before it is joined with others: which device, whose process, what it means, or that it means nothing.

First half of fusion: names, baseline, signs of recovery, repetition. Everything it remembers is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from dynamo_gpu_ft.health import rules
from dynamo_gpu_ft.health.attribution import rank_of_process, ranks_on
from dynamo_gpu_ft.health.causes import Family, family_of
from dynamo_gpu_ft.health.clearing import NODE
from dynamo_gpu_ft.health.entries import Entry, bounded
from dynamo_gpu_ft.health.incidents import Action, Unusable, Verdict
from dynamo_gpu_ft.health.levels import Levels
from dynamo_gpu_ft.health.names import Known, Names
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.health.repeats import Repeats
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.windows import Bounded
from dynamo_gpu_ft.topology import Rank

_PER_PROCESS = (Family.UNKNOWN, Family.APP, Family.ENGINE)
_AT_ATTACH = ("recovery_action", "rows", "gpu_lost", "driver")
Fold = Callable[[tuple[object, ...], Reading, "Verdict | None"], bool]


class Intake:
    """`take` gives an entry that holds this one reading, or None for what is no evidence of a fault.

    `signs` collects signs of recovery: (device number, `rules.cure_key`) -> when; `signed` is true after one until set back.
    """

    def __init__(
        self,
        settings: Settings,
        driver: str,
        ranks: Sequence[Rank],
        catalogue: rules.Catalogue,
        graces: Sequence[float],
    ) -> None:
        self.driver = driver
        self.names = Names()
        self.set_ranks(ranks)
        self.repeats = Repeats(settings)
        self.levels = Levels()
        self.signs: Bounded[tuple[int, str], float] = Bounded(4096)
        self.signed = False
        self.seen: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._settings = settings
        self._catalogue = rules.Remembered(catalogue)
        self._graces = list(graces)
        self._serials: Bounded[tuple[object, ...], None] = Bounded(4096)

    def set_ranks(self, ranks: Sequence[Rank]) -> None:
        self._all_ranks = tuple(ranks)
        self.ranks = tuple((rank, self.names.resolve(rank.device)) for rank in ranks)

    def attribute(self, entry: Entry, reading: Reading) -> None:
        """Whose process an entry names, and whether it is certainly none of the engine's."""
        entry.shard, entry.foreign = rank_of_process(reading, self._all_ranks)
        device = entry.known.device
        if self.ranks and device.kind == "gpu" and device.known and entry.shard is None:
            entry.foreign = entry.foreign or not ranks_on(entry.known, self.ranks)

    def take(self, reading: Reading, fold: Fold) -> Entry | None:
        """`fold` may take the reading into an entry there is already under its key: then None."""
        self.seen[reading.source.value] += 1
        if self._twice(reading):
            return None
        if reading.probe == "log":
            self.counts["lost"] += _count(reading.facts.get("lost", reading.facts.get("count", "")))
            return None
        known = self._place(reading)
        if reading.state is State.UNKNOWN or rules.says_nothing(reading):
            self.counts["unknown" if reading.state is State.UNKNOWN else "nothing"] += 1
            return None
        if rules.is_rebound(reading):
            self._graces = [*self._graces[-7:], reading.at]
            self.sign(
                NODE if reading.device.kind == "node" else known.number, "rebound", reading.at
            )
            return None
        if reading.probe in rules.LEVELLED:
            fresh = self.levels.put(known.number, reading, self._settings)
            if not fresh and not reading.baseline:
                return None
        cured = rules.cures(reading)
        if cured:
            if not reading.baseline:
                self.sign(known.number, cured, reading.at)
            return None
        if reading.state is State.HEALTHY:
            return None
        verdict, kind = rules.meaning(reading, self.driver, self._catalogue)
        if reading.baseline and not (
            reading.probe in _AT_ATTACH
            and verdict.lasting
            and verdict.unusable is not Unusable.NOTHING
        ):
            return None
        verdict, raised = self._in_context(known, reading, verdict, kind)
        told = raised or verdict
        if told.unusable is Unusable.NOTHING and told.action is Action.NONE:
            return None
        return self._entry(known, reading, verdict, raised, kind, fold)

    def _twice(self, reading: Reading) -> bool:
        if not reading.serial:
            return False
        key = (
            reading.source, reading.serial[:64], reading.probe, reading.code, reading.device, reading.state, reading.at,
        )  # fmt: skip
        if key in self._serials:
            self.counts["twice"] += 1
            return True
        self._serials[key] = None
        return False

    def _place(self, reading: Reading) -> Known:
        device = reading.device
        if not device.known and reading.shard is not None:
            device = next((r.device for r in self._all_ranks if r.shard == reading.shard), device)
        return self.names.resolve(device)

    def sign(self, number: int, key: str, at: float) -> None:
        """Notes that what `key` (`rules.cure_key`) tells of this device was fine at that time."""
        self.signs[(number, key)] = max(at, self.signs.get((number, key), at))
        self.signed = True

    def _in_context(
        self, known: Known, reading: Reading, single: Verdict, kind: str
    ) -> tuple[Verdict, Verdict | None]:
        """The verdict of a reading given the time, and the greater one that the readings before it may add up to."""
        s = self._settings
        if reading.probe in ("nvlink", "fabric") and reading.state is State.FAILED:
            if any(0 <= reading.at - start <= s.grace_s for start in self._graces):
                return rules.TRAINING, None
            downs = self.repeats.went_down(known, reading) if reading.probe == "nvlink" else 0
            return single, rules.FLAPPING if downs >= s.flap_count else None
        more = self.repeats.verdict(known, reading, kind, single)
        if more is None or more.unusable.severity < single.unusable.severity:
            return single, None
        return single, more

    def _entry(
        self,
        known: Known,
        reading: Reading,
        verdict: Verdict,
        raised: Verdict | None,
        kind: str,
        fold: Fold,
    ) -> Entry | None:
        family = family_of(reading, verdict, kind)
        linked = family[0] in (Family.LINK, Family.SWITCH)
        key = (
            known.number, reading.device.gi, reading.device.ci, reading.source, reading.probe, reading.code,
            reading.facts.get("link", "")[:32] if linked else "",
            (reading.pid_space, reading.pid) if family[0] in _PER_PROCESS else None,
            reading.shard, reading.baseline,
            verdict, kind,
        )  # fmt: skip
        if fold(key, reading, raised):
            return None
        entry = Entry(key, known, bounded(reading, self._settings), family, verdict, kind)
        if raised is not None:
            entry.rise(raised)
        self.attribute(entry, reading)
        return entry


def _count(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 16 else 1
