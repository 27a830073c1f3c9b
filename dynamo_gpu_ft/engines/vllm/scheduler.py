"""Scheduler half of the connector: decides per step which blocks to store and load, from vLLM's own request objects.

Runs in EngineCore. It reads the arena's index (never a payload) to answer how much of a prompt can be restored; all
copying is the worker half's.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.engines.vllm.metadata import StepMetadata, WorkerReport
from dynamo_gpu_ft.kv import policy, restore, tail
from dynamo_gpu_ft.kv.blocks import Pin, Run, Usable, make_run
from dynamo_gpu_ft.kv.cost import Costs
from dynamo_gpu_ft.kv.prefix import Names
from dynamo_gpu_ft.metrics import metrics

#: A block that could not be stored is tried again this many steps later; at once when its request has lost its blocks so
#: shortly before that the copy was called off for that.
RETRY_STEPS, SHORTLY = 32, 4

#: What a request says in its `kv_transfer_params` to keep its blocks: true, false, or seconds.
PIN = "gpu_ft_pin"

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


class Reader(Protocol):
    def usable(self, names: Names, limit: int, tails: Iterable[tail.Tail] = ()) -> Usable: ...


@dataclass(slots=True)
class _Tracked:
    """One request the scheduler has given blocks to. `stored` counts the leading blocks asked to be stored.

    Blocks that vLLM found in its own pool are asked for too: the arena has most of them, and finding one present is how it
    learns that a second request used it, which keeps shared prompts that always hit in the engine from being evicted."""

    request: Any
    stored: int = 0
    tail: tuple[int, int] = (
        0,
        0,
    )  # position and tokens of the tail asked for last; no tokens: none
    not_before: int = 0
    preempted: int = -SHORTLY  # the step it lost its blocks in
    told: bool = False  # the workers know of it, and must hear of its end


class SchedulerHalf:
    """Called from EngineCore's one thread; nothing here blocks."""

    def __init__(
        self,
        reader: Reader,
        *,
        block_size: int,
        block_bytes: int,
        snapshot: bool,
        decode: bool,
        tail_every: int = 0,
        pin_ttl_s: float = 0.0,
        by_cost: bool = True,
        names: Callable[[Any, int], Sequence[bytes]] = compat.own_hashes,
    ) -> None:
        self._reader, self._block_size, self._block_bytes = reader, block_size, block_bytes
        self._names, self._by_cost = names, by_cost
        self._costs = Costs()
        self._snapshot, self._decode = snapshot, decode
        self._tail_every = tail_every if snapshot and decode else 0
        self._tracked: dict[str, _Tracked] = {}
        self._plans: dict[str, restore.RestorePlan] = {}
        self._loads: list[Run] = []
        self._loading: set[str] = set()
        self._finished: list[str] = []
        self._released: list[str] = []
        self._pins: list[Pin] = []
        self._pin_ttl_s = pin_ttl_s
        self._said = False  # that a request's wish is malformed
        self._step = 0

    def matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """(tokens that can be loaded beyond the local hit, loaded asynchronously). Mutates nothing that a second call would notice."""
        if request.skip_reading_prefix_cache or num_computed_tokens % self._block_size:
            return 0, False
        limit = policy.restorable_blocks(
            num_tokens=request.num_tokens,
            block_size=self._block_size,
            hashed_blocks=len(request.block_hashes),
        )
        if limit * self._block_size <= num_computed_tokens and not self._tail_every:
            return 0, False
        usable = self._reader.usable(
            lambda tokens: self._names(request, tokens), limit, self._tails_behind(request, limit)
        )
        plan = restore.plan(
            usable,
            local_tokens=num_computed_tokens,
            block_size=self._block_size,
            block_bytes=self._block_bytes,
            costs=self._costs if self._by_cost else None,
        )
        if plan.refused:
            self._costs.load[plan.refused].forgive()
            metrics().add("restore_refused_total", 1, source=plan.refused)
        if plan.count == 0:
            self._plans.pop(request.request_id, None)
            return 0, False
        self._plans[request.request_id] = plan
        return plan.tokens(self._block_size), True

    def _tails_behind(self, request: Any, limit: int) -> Iterable[tail.Tail]:
        """What may lie behind the first `limit` blocks of `request`."""
        if not self._tail_every or not compat.named_by_tokens(request):
            return ()
        hashes, begin = request.block_hashes, limit * self._block_size
        return tail.candidates(
            bytes(hashes[limit - 1]) if limit else None,
            request.all_token_ids[begin : begin + self._block_size],
            whole=bytes(hashes[limit]) if len(hashes) > limit else None,
            block_size=self._block_size,
            every=self._tail_every,
        )

    def allocated(self, request: Any, block_ids: Sequence[int], num_external_tokens: int) -> None:
        """vLLM has given `request` its blocks; loads what it took of the answer of `matched_tokens`."""
        request_id = request.request_id
        tracked = self._tracked.setdefault(request_id, _Tracked(request))
        tracked.request = request
        plan = self._plans.pop(request_id, None)
        if num_external_tokens <= 0 or plan is None:
            return
        count = min(plan.count, -(-num_external_tokens // self._block_size))
        ids = block_ids[plan.first : plan.first + count]
        names, last = list(request.block_hashes), plan.first + count - 1
        covered = 0
        if plan.tail is not None and count == plan.count and plan.tail.name not in names[last:]:
            names[last:], covered = [plan.tail.name], plan.tail.tokens
            tracked.tail, tracked.told = (last, covered), True
        run = make_run(request_id, plan.first, ids, names)
        self._loads.append(
            dataclasses.replace(
                run, sources=plan.sources[:count], timeout_s=plan.timeout_s, tail=covered
            )
        )
        self._loading.add(request_id)

    def build(self, scheduler_output: Any, manager: Any) -> StepMetadata:
        """This step's orders. Called once per step, after allocation and before vLLM advances its counters."""
        self._step += 1
        step = StepMetadata(
            loads=self._loads,
            finished=self._finished,
            released=self._released,
            pins=self._pins,
            preempted=list(scheduler_output.preempted_req_ids or ()),
            prefill_tokens=sum(n for n in scheduler_output.num_scheduled_tokens.values() if n > 1),
        )
        self._loads, self._finished, self._released, self._pins = [], [], [], []
        for request_id in step.preempted:
            if request_id in self._tracked:
                self._tracked[request_id].preempted = self._step
        for request_id, scheduled in scheduler_output.num_scheduled_tokens.items():
            tracked = self._tracked.get(request_id)
            if tracked is None or not self._snapshot or self._step < tracked.not_before:
                continue
            run = self._run_to_store(tracked, scheduled, scheduler_output, manager)
            open_block = self._tail_to_store(tracked, scheduled, scheduler_output, manager)
            orders = [order for order in (run, open_block) if order is not None]
            tracked.told = tracked.told or bool(orders)
            step.stores += orders
        return step

    def pending_loads(self) -> list[Run]:
        """Loads planned but not yet sent to the workers."""
        return list(self._loads)

    def _run_to_store(
        self, tracked: _Tracked, scheduled: int, scheduler_output: Any, manager: Any
    ) -> Run | None:
        request = tracked.request
        wanted = policy.blocks_to_store(
            stored=tracked.stored,
            computed_tokens=request.num_computed_tokens + scheduled,
            block_size=self._block_size,
            hashed_blocks=len(request.block_hashes),
            prompt_blocks=request.num_prompt_tokens // self._block_size,
            decode=self._decode,
        )
        if not wanted:
            return None
        ids = compat.request_block_ids(scheduler_output, manager, request.request_id)
        if ids is None or len(ids) < wanted.stop:
            return None
        tracked.stored = wanted.stop
        return make_run(
            request.request_id, wanted.start, ids[wanted.start : wanted.stop], request.block_hashes
        )

    def _tail_to_store(
        self, tracked: _Tracked, scheduled: int, scheduler_output: Any, manager: Any
    ) -> Run | None:
        """The open block, when it has grown enough. Its parent must have been asked for, and its tokens say all about it."""
        request = tracked.request
        if not self._tail_every or not compat.named_by_tokens(request):
            return None
        position, tokens = due = tail.due(
            known=request.num_tokens,
            computed=request.num_computed_tokens + scheduled,
            block_size=self._block_size,
            every=self._tail_every,
        )
        if not tokens or position != tracked.stored or due <= tracked.tail:
            return None
        ids = compat.request_block_ids(scheduler_output, manager, request.request_id)
        if ids is None or len(ids) <= position:
            return None
        tracked.tail = due
        begin = position * self._block_size
        parent = bytes(request.block_hashes[position - 1]) if position else None
        name = tail.name_of(parent, request.all_token_ids[begin : begin + tokens])
        return Run(request.request_id, position, (ids[position],), (name,), parent, tail=tokens)

    def reported(self, report: WorkerReport, finished_loads: Sequence[str]) -> None:
        """What the workers found: blocks to try again, loads that are over, what loading and computing cost."""
        self._loading.difference_update(finished_loads)
        for source, size, seconds in report.moved:
            self._costs.load[source].observe(size, seconds)
        for tokens, seconds in report.prefills:
            self._costs.compute.observe(tokens, seconds)
        for request_id, first in report.gaps.items():
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                tracked.stored = min(tracked.stored, first)
                if self._step - tracked.preempted > SHORTLY:
                    tracked.not_before = self._step + RETRY_STEPS

    def members_lost(self) -> None:
        """Ranks were lost: what they and the others were asked for and have not reported is asked for again, or over.

        Blocks that are in the arena already are found there; ended requests wait for nobody."""
        self._loads, self._finished, self._released = [], [], []
        self._plans.clear()
        self._loading.clear()
        for tracked in self._tracked.values():
            tracked.stored, tracked.tail, tracked.not_before = 0, (0, 0), 0

    def ended(self, request: Any) -> bool:
        """True when vLLM must keep the request's blocks until the workers report it sent.

        NOTE: never True while a load is under way: vLLM then frees the blocks when the load is reported, and would free
        them twice (0.31 and 0.32, Scheduler._update_from_kv_xfer_finished)."""
        request_id = request.request_id
        self._plans.pop(request_id, None)
        tracked = self._tracked.pop(request_id, None)
        if tracked is None or not tracked.told:
            return False
        if tracked.stored:
            self._pin(request, tracked.stored)
        if request_id in self._loading:
            self._released.append(request_id)
            return False
        self._finished.append(request_id)
        return True

    def _pin(self, request: Any, blocks: int) -> None:
        """NOTE: vLLM hands a request's `kv_transfer_params` through as they are; other connectors pass our key over."""
        asked = (getattr(request, "kv_transfer_params", None) or {}).get(PIN)
        if asked is None:
            return
        try:
            until = policy.pin_until(asked, now=time.time(), ttl_s=self._pin_ttl_s)
        except ValueError as rule:
            metrics().add("pins_refused_total", 1, reason="malformed")
            if not self._said:
                _log.warning("PIN REFUSED (said once): %s of a request is %r; %s", PIN, asked, rule)
            self._said = True
            return
        names = tuple(bytes(h) for h in request.block_hashes[:blocks])
        self._pins.append(Pin(request.request_id, names, until))
