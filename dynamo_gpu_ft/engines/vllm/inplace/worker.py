"""`InPlaceWorker`: vLLM's CPU worker that can change its group, take a lost rank's place, and be told the requests' state.

Named in the configuration by the executor. What it adds is called through vLLM's own queue once all ranks are in one group again.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.v1.worker.cpu_worker import CPUWorker

from dynamo_gpu_ft.engines.vllm.inplace import alone, ghost, inside, orders, states, weights
from dynamo_gpu_ft.engines.vllm.inplace.survivor import Survivor
from dynamo_gpu_ft.kv.blocks import Run

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


def _install() -> None:
    """Replaces the loop of this process's one worker. The module is imported before the loop begins."""
    process = inside.worker_process()
    if getattr(process, "_gpu_ft_in_place", False):
        return
    process._gpu_ft_in_place = True
    stock = process.worker_busy_loop

    def worker_busy_loop(self: Any) -> None:
        survivor = getattr(self.worker.worker, "survivor", None)
        if survivor is None:
            stock(self)
        else:
            survivor.busy_loop(self)

    process.worker_busy_loop = worker_busy_loop


_install()


class InPlaceWorker(CPUWorker):
    """One rank. Methods with `recovery_` are called on every rank by the executor; the others by `Survivor`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.draws = states.Draws()
        self.scale = weights.Scale()
        self._rehearsed = False
        self.survivor = Survivor.of(self) if os.environ.get(orders.ADDRESS_VARIABLE) else None

    def init_device(self) -> None:
        why = ghost.self_test(torch.ops._C, torch.get_num_threads())
        if why:
            _log.warning(
                "collectives of rank %d go over gloo, which is slower: those in shared memory could not be freed: %s",
                self.rank,
                why,
            )
            inside.without_shared_memory(self.rank)
        if self.survivor is not None:
            self.survivor.wait_at_door()
        super().init_device()
        if self.survivor is not None:
            self.survivor.entered_group()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        with self.scale.loading():
            super().load_model(*args, **kwargs)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        if self.survivor is not None:
            self.survivor.all_entered()
        super().initialize_from_config(kv_cache_config)

    def rehearse(self, layout: str, kv_cache_config: Any, *, passes: bool) -> None:
        """A standby's KV cache, outside the arena, and with `passes` one request from prompt to end."""
        self.set_kv_cache_layout(layout)
        self.cache_config.num_gpu_blocks = kv_cache_config.num_blocks
        self.model_runner.initialize_kv_cache(kv_cache_config)
        self._rehearsed = True
        if not passes:
            return
        for step in alone.rehearsal_steps():
            if self.model_runner.execute_model(step) is None:
                self.model_runner.sample_tokens(None)
        inside.clear_requests(self.model_runner)
        alone.zero_blocks(self.model_runner)

    def sample_tokens(self, grammar_output: Any) -> Any:
        self.draws.before_sampling(self.model_runner)
        return super().sample_tokens(grammar_output)

    def forget_step(self) -> None:
        """Drops what a step that nobody will finish left behind."""
        inside.forget_step(self.model_runner)

    def join_group(self, init_method: str, timeout_s: float) -> None:
        """Enters the communicators found at `init_method`; all ranks do at the same time. Raises what torch raises."""
        self.distributed_init_method = init_method
        with set_current_vllm_config(self.vllm_config):
            inside.join_groups(self, init_method, timeout_s)
        assert self.survivor is not None
        self.survivor.entered_group()

    # -- on every rank, through the new queue ----------------------------------------------------------------------------

    def recovery_admit(self, ranks: tuple[int, ...], layout: str, kv_cache_configs: Any) -> None:
        """The new ranks allocate their KV cache and join the arena; nothing on the others."""
        assert self.survivor is not None
        self.survivor.all_entered()
        if self.rank not in ranks:
            return
        if self._rehearsed:
            with set_current_vllm_config(self.vllm_config), inside.without_engine_id_broadcast():
                alone.connect_kv(self, kv_cache_configs[self.rank])
            return
        self.set_kv_cache_layout(layout)
        with set_current_vllm_config(self.vllm_config), inside.without_engine_id_broadcast():
            self.initialize_from_config(kv_cache_configs[self.rank])

    def recovery_all_reduce(self) -> float:
        """The canary: one collective through all ranks, of the kind that steps use."""
        from vllm.distributed import tensor_model_parallel_all_reduce

        ones = torch.full((64,), float(self.rank + 1))
        return float(tensor_model_parallel_all_reduce(ones).sum())

    def recovery_weights(self, ranks: tuple[int, ...] | None) -> weights.Weighed | None:
        """This rank's weights as they are; None on ranks that are not asked (None: all are)."""
        if ranks is not None and self.rank not in ranks:
            return None
        return self.scale.weigh(self.get_model())

    def recovery_modules(self) -> list[str]:
        """What this process has imported, in that order."""
        return [name for name in sys.modules if not name.startswith("__m")]

    def recovery_random(self) -> states.RandomState:
        """This rank's random state, from which every rank goes on."""
        return self.draws.export(self.model_runner)

    def recovery_refill(self, ranks: tuple[int, ...], runs: list[Run], seconds: float) -> list[int]:
        """Engine blocks that the new ranks could load from the arena; nothing on the others."""
        if self.rank not in ranks:
            return []
        connector = inside.our_worker_connector()
        return connector.refill(runs, seconds) if connector is not None else []

    def recovery_requests(
        self, requests: list[states.RequestState], random: states.RandomState
    ) -> None:
        """Forgets every request and learns these, which will all be resumed; equal on every rank."""
        connector = inside.our_worker_connector()
        if connector is not None:
            connector.forget({request.request_id for request in requests})
        states.install(self.model_runner, requests, random)
        self.draws.restart(requests, random)
