"""Inside a standby: becomes all that a worker is but for its group and its place, rehearses a pass, and waits to be taken.

The group is one that does nothing (torch's "fake" communicator), so what is computed is meaningless; what it leaves is loaded code,
weights, and memory that has been touched.
"""

from __future__ import annotations

import gc
import logging
import pickle
from typing import Any

from vllm.config import set_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.executor import multiproc_executor
from vllm.v1.worker.worker_base import WorkerWrapperBase

from dynamo_gpu_ft.engines.vllm import vitals
from dynamo_gpu_ft.engines.vllm.inplace import alone
from dynamo_gpu_ft.engines.vllm.inplace.orders import Take

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


def standby_main(layout: str, kv_cache_configs: Any, worker: dict[str, Any]) -> None:
    """The process: vLLM's own worker program, whose worker takes a detour."""
    Standby.layout, Standby.kv_cache_configs = layout, kv_cache_configs
    multiproc_executor.WorkerProc = Standby
    multiproc_executor.WorkerProc.worker_main(**worker)


class Standby(multiproc_executor.WorkerProc):
    """`__init__` returns, as vLLM's does, when the worker is in its group with its weights: here after waiting for a place."""

    layout: str
    kv_cache_configs: Any

    def __init__(
        self,
        vllm_config: Any,
        local_rank: int,
        rank: int,
        distributed_init_method: str,
        input_shm_handle: Any,
        shared_worker_lock: Any,
        is_driver_worker: bool,
    ) -> None:
        pristine = pickle.dumps(vllm_config)
        self.worker = self._made(vllm_config, rank, shared_worker_lock)
        self._rehearse(rank, passes=True)
        order = self._worker.survivor.wait_for_place()
        self.rank = order.rank
        if order.rank != rank:
            vllm_config = self._become(pristine, order.rank, shared_worker_lock)
            alone.bind_threads(order.cpus)
        self._enter(vllm_config, order)

    @property
    def _worker(self) -> Any:
        return self.worker.worker

    def _made(self, vllm_config: Any, rank: int, lock: Any) -> WorkerWrapperBase:
        wrapper = WorkerWrapperBase(rpc_rank=rank, global_rank=rank)
        arguments: list[dict[str, Any]] = [
            {} for _ in range(vllm_config.parallel_config.world_size)
        ]
        arguments[rank] = {
            "vllm_config": vllm_config,
            "local_rank": rank,
            "rank": rank,
            "distributed_init_method": "",
            "is_driver_worker": rank == 0,
            "shared_worker_lock": lock,
        }
        wrapper.init_worker(arguments)
        return wrapper

    def _rehearse(self, rank: int, *, passes: bool) -> None:
        worker, config = self._worker, self.worker.vllm_config
        with (
            alone.no_group(rank, config.parallel_config.world_size),
            set_current_vllm_config(config),
        ):
            # NOTE: past the wrapper, whose call would give this process the heartbeat of the rank that lives.
            worker.init_device()
            worker.load_model()
            current_platform.update_block_size_for_backend(config)
            worker.rehearse(self.layout, self.kv_cache_configs[rank], passes=passes)

    def _become(self, pristine: bytes, rank: int, lock: Any) -> Any:
        """Another shard's place: its weights are loaded after all; imports and code are there. Returns the new configuration."""
        self.worker = None
        gc.collect()
        vllm_config = pickle.loads(pristine)
        self.worker = self._made(vllm_config, rank, lock)
        self._rehearse(rank, passes=False)
        return vllm_config

    def _enter(self, vllm_config: Any, order: Take) -> None:
        worker = self._worker
        worker.survivor.stand_at_door()
        worker.join_group(order.init_method, order.timeout_s)
        vitals.watch(self.worker)
        self.use_async_scheduling = False
        self.setup_proc_title_and_log_prefix(enable_ep=False)
        self._init_message_queues(order.queue, vllm_config)
