"""A real offline vLLM engine in a process of its own, asked over pipes: one request, one timed answer.

The vLLM benches keep two of them side by side, with and without the connector, and ask them in turn. As a program
(`python bench/offline.py JSON`) this file is that process.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.cli.demo.server import tail
from dynamo_gpu_ft.errors import GpuFtError

ROOT = Path(__file__).resolve().parents[1]
START_DEADLINE_S = 300.0
ANSWER_DEADLINE_S = 900.0
CONNECTOR = {
    "kv_connector": "GpuFtConnector",
    "kv_connector_module_path": "dynamo_gpu_ft.engines.vllm.connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


class Engine:
    """Runs from `__enter__` to `__exit__`. `settings` switches the connector on, with these keys; None is plain vLLM.

    `transfer` is somebody else's connector as vLLM's own configuration; `python` the interpreter whose vLLM is used."""

    def __init__(
        self,
        model: Path,
        *,
        settings: dict[str, Any] | None,
        dtype: str,
        transfer: dict[str, Any] | None = None,
        python: str = sys.executable,
    ) -> None:
        arguments: dict[str, Any] = {
            "model": str(model),
            "dtype": dtype,
            "max_model_len": 4096,
            "max_num_batched_tokens": 4096,
            "max_num_seqs": 8,
            "block_size": 32,
            "enforce_eager": True,
            "seed": 0,
        }
        if settings is not None:
            arguments["kv_transfer_config"] = {**CONNECTOR, "kv_connector_extra_config": settings}
        elif transfer is not None:
            arguments["kv_transfer_config"] = transfer
        self.protected = settings is not None
        self._python = python
        self._arguments = arguments
        self._log = Path(tempfile.mkstemp(prefix="gft-bench-engine.", suffix=".log")[1])
        self._rest = b""

    def __enter__(self) -> "Engine":
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            # One process: fewer processes that wait by spinning, so less noise where cores are few. vLLM then reserves no
            # core for anything but its arithmetic, as it does otherwise; so this does.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._python, __file__, json.dumps(self._arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
            )
        try:
            self._answer(START_DEADLINE_S)
        except BaseException:
            self.kill()
            raise
        return self

    def ask(self, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        """`seconds` (all prompts, to the last token), `tokens` and `cached` per prompt, and `protected`."""
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"prompts": prompts, "max_tokens": max_tokens}).encode() + b"\n"
        )
        self._process.stdin.flush()
        answer = self._answer(ANSWER_DEADLINE_S)
        if self.protected and answer["not_protected"]:
            raise GpuFtError(
                "the connector is not protecting this engine", value=answer["not_protected"]
            )
        return answer

    def _answer(self, deadline_s: float) -> dict[str, Any]:
        """The next line of the engine's answers. Errors: `GpuFtError` with the end of its log."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ends = time.monotonic() + deadline_s
        while b"\n" not in self._rest:
            left = max(0.0, ends - time.monotonic())
            readable, _, _ = select.select([descriptor], [], [], left)
            piece = os.read(descriptor, 1 << 20) if readable else b""
            if not piece:
                what = "ended" if readable else f"did not answer in {deadline_s:.0f} s"
                raise GpuFtError(f"the engine {what}; its log ends with\n{tail(self._log)}\n")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """SIGKILL: what a fault does. Everything runs in that one process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self.kill()


def _serve(arguments: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints; the answers keep a descriptor of their own
    from vllm import LLM, SamplingParams

    if arguments.get("kv_transfer_config", {}).get("kv_connector", "").startswith("LMCache"):
        _mend_a_module_search()
    llm = LLM(**arguments)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=request["max_tokens"], ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        answer = {
            "seconds": seconds,
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens for output in outputs],
            "not_protected": _settled(),
        }
        print(json.dumps(answer), file=answers, flush=True)


def _mend_a_module_search() -> None:
    """NOTE: vLLM 0.32 walks all of sys.modules, and fails at an extension module whose `vars` is no mapping; LMCache's
    packages bring one. For this process the search passes over it."""
    import types

    from vllm.triton_utils import dispatcher

    dispatcher.vars = lambda module: (  # type: ignore[attr-defined]
        module.__dict__ if isinstance(module.__dict__, dict | types.MappingProxyType) else {}
    )


def _settled() -> list[str]:
    """Waits, outside the measured time, until every KV snapshot taken so far is in the arena."""
    from vllm.distributed import kv_transfer

    if not kv_transfer.has_kv_transfer_group():
        return []
    connector: Any = kv_transfer.get_kv_transfer_group()
    worker = getattr(connector, "_worker", None)
    if worker is not None:
        worker._tier.wait(30.0)
    why = getattr(connector, "not_protected", None)  # another connector says nothing
    return [why] if why else []


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
