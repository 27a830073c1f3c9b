"""Real engines as subprocesses for the engine tests: an offline vLLM with the connector, answering over pipes."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nursery import Born, Nursery

from dynamo_gpu_ft.recovery import processes

PROGRAM = Path(__file__).with_name("offline_engine.py")
ROOT = Path(__file__).parents[2]
CONNECTOR = {
    "kv_connector": "GpuFtConnector",
    "kv_connector_module_path": "dynamo_gpu_ft.engines.vllm.connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


def engine_environment(**extra: str) -> dict[str, str]:
    """What vLLM needs to run small, quietly and without a network on a machine without a GPU."""
    return {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": str(ROOT),
        **extra,
    }


@functools.cache
def nursery() -> Nursery:
    """The one of this run of the tests: begun with the first engine, ended with the run."""
    made = Nursery(PROGRAM, engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"))
    atexit.register(made.close)
    return made


class OfflineEngine:
    """Starts on construction; every wait has a deadline after which the whole process tree is ended."""

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        settings: dict[str, Any] | None,
        transfer: dict[str, Any] | None = None,
        deadline_s: float = 180.0,
        environment: dict[str, str] | None = None,
        command: Sequence[str] = (),
        disk_faults: Sequence[tuple[str, int, int, int]] = (),
        **llm: Any,
    ) -> None:
        arguments = {
            "model": str(model),
            "dtype": "float32",
            "max_model_len": 1024,
            "enforce_eager": True,
            "max_num_seqs": 8,
            "block_size": 32,
            "seed": 0,
            "disable_log_stats": False,
            **llm,
        }
        if transfer is not None:
            arguments["kv_transfer_config"] = transfer
        elif settings is not None:
            arguments["kv_transfer_config"] = {**CONNECTOR, "kv_connector_extra_config": settings}
        tensor_parallel = llm.get("tensor_parallel_size", 1)
        extra = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if tensor_parallel == 1 else {}
        self._tag = f"offline-{os.getpid()}-{id(self)}"
        self._deadline_s = deadline_s
        self.log = log
        orders = {"llm": arguments, "disk_faults": list(disk_faults)}
        chosen = engine_environment(
            **extra, **(environment or {}), **{processes.TAG_VARIABLE: self._tag}
        )
        self.process: subprocess.Popen[str] | Born
        with log.open("wb") as stderr:
            if tensor_parallel == 1 and not command:
                self.process = nursery().bear(orders, chosen, stderr)
            else:  # its workers are started by vLLM, and a command needs a process of its own
                self.process = subprocess.Popen(
                    [*command, sys.executable, str(PROGRAM), json.dumps(orders)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    env=chosen,
                )
        self.ready = self._reply()

    def run(
        self,
        prompts: list[list[int]],
        max_tokens: int | list[int] = 24,
        transfer_params: dict[str, Any] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """`more`: what else shall happen, see the program."""
        assert self.process.stdin is not None
        request = {"prompts": prompts, "max_tokens": max_tokens, "transfer_params": transfer_params}
        request |= more
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._end()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _end(self) -> None:
        self.process.kill()
        processes.end_all(self._tag, deadline_s=10.0)

    def __enter__(self) -> OfflineEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        guard = threading.Timer(self._deadline_s, self._end)
        guard.start()
        try:
            line = self.process.stdout.readline()
        finally:
            guard.cancel()
        if not line:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise AssertionError(f"the engine ended or answered too late; its log ends:\n{tail}")
        return dict(json.loads(line))


def prompt(seed: int, length: int = 300) -> list[int]:
    return [(seed * 7 + j * 13) % 990 + 5 for j in range(length)]
