"""Where replacements and standbys come from: a nursery while there is one that answers, else a fresh interpreter, seconds slower.

The nursery has imported what a worker of this engine has; the watching thread of EngineCore keeps one, which may die at any time.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace import alone
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.nursery import Nursery

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: A nursery that has died is followed by the next one after so long.
PAUSE_S = 10.0

#: Standbys do not wait for a nursery any longer than this.
IMPORTS_S = 60.0


class Births:
    """Processes are started one at a time: each gets this process's environment of that moment."""

    def __init__(self, executor: Any, *, nursery: bool) -> None:
        self._executor, self._wanted = executor, nursery
        self._modules: Sequence[str] = ()
        self._nursery: Nursery | None = None
        self._began = -PAUSE_S
        self._lock = threading.Lock()

    def expect(self, modules: Sequence[str]) -> None:
        """From now on a nursery is worth having: `modules` are what a worker has imported, in that order."""
        self._modules = modules

    def maintain(self) -> None:
        """Starts a nursery where one is missing. On the thread whose end is to be the nursery's. Raises OSError."""
        with self._lock:
            if self._nursery is not None and self._nursery.unfit:
                _log.warning(
                    "no nursery: what this engine imports starts threads; replacements import it anew"
                )
                self._wanted = False
                self._drop()
            if self._nursery is not None and not self._nursery.alive:
                self._drop()
            missing = self._wanted and self._modules and self._nursery is None
            if missing and time.monotonic() >= self._began + PAUSE_S:
                self._began = time.monotonic()
                cpus = self.cpus(0)
                threads = {"OMP_NUM_THREADS": str(len(cpus))} if cpus else {}
                self._nursery = Nursery(self._modules, threads, compiler_ready)

    @property
    def soon(self) -> bool:
        """Whether a process that is not urgent had better wait for the nursery, which spares it its imports."""
        nursery = self._nursery
        began = time.monotonic() - self._began
        return nursery is not None and nursery.importing and began < IMPORTS_S

    def start(
        self,
        rank: int,
        target: Callable[..., object],
        arguments: Mapping[str, Any],
        name: str,
        environment: Mapping[str, str],
    ) -> Any:
        """A started process that calls `target` with `arguments`, where threads of `rank` run, with `environment` too. Raises OSError."""
        from vllm.utils.system_utils import get_mp_context

        with (
            self._lock,
            processes.environment(environment),
            self._executor.omp.configure_omp_envs(rank=rank, local_rank=rank),
        ):
            if self._nursery is not None and self._nursery.ready:
                forked = {"cpus": self.cpus(rank), "target": target, "arguments": dict(arguments)}
                process = self._nursery.process(_forked, kwargs=forked, name=name, daemon=True)
                try:
                    process.start()
                    return process
                except OSError as error:
                    _log.warning("%s; another process imports what it needs itself", error)
                    self._drop()
            fresh = get_mp_context().Process(
                target=target, kwargs=arguments, name=name, daemon=True
            )
            fresh.start()
            return fresh

    def cpus(self, rank: int) -> tuple[int, ...]:
        """Where the threads of `rank` run; empty where nobody binds them."""
        lists = getattr(self._executor.omp, "cpu_lists", None) or []
        return tuple(lists[rank]) if rank < len(lists) else ()

    def close(self) -> None:
        with self._lock:
            self._wanted = False
            self._drop()

    def _drop(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
        self._nursery = None


def compiler_ready() -> None:
    """Finds out what torch's compiler asks in each process at its first use, even of what it has compiled before: which vector
    instructions there are, by test programs. Blocks for a second, longer where those have to be built. Any exception: another torch."""
    importlib.import_module("torch._inductor.cpu_vec_isa").valid_vec_isa_list()


def _forked(
    cpus: tuple[int, ...], target: Callable[..., object], arguments: Mapping[str, Any]
) -> None:
    """In the child: what the environment would have told OpenMP, had it not been loaded already."""
    import torch

    alone.bind_threads(cpus)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    target(**arguments)
