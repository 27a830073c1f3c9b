"""The program behind `harness.OfflineEngine`: one real vLLM engine that answers JSON lines on stdin with JSON lines on stdout.

Argument: JSON {"llm": arguments of vllm.LLM, "disk_faults": what the disk log's own injection of faults takes, or null}, or
--nursery DESCRIPTOR, see nursery.py. Each request line: {"prompts": [[token, ...], ...], "max_tokens": n or one
per prompt, "transfer_params": what each request says to connectors, or null}, and what else shall happen:
"abort_in": the first request seen in that state of vLLM's is aborted; "die": {"tokens": n, "preempted": n}: once there have been
so many, all requests together, the program answers with the tokens so far and kills itself.
"""

import atexit
import importlib
import json
import os
import signal
import sys
import time
from typing import IO


def answer(llm: object, request: dict, replies: IO[str]) -> dict:
    from vllm import SamplingParams

    said = request.get("transfer_params")
    most = request["max_tokens"]
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=most if isinstance(most, int) else most[number],
            ignore_eos=True,
            extra_args={"kv_transfer_params": said} if said else None,
        )
        for number in range(len(request["prompts"]))
    ]
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    began = time.monotonic()
    aborted = None
    if request.get("abort_in") or request.get("die"):
        outputs, aborted = drive(llm, prompts, params, request, replies)
    else:
        outputs = llm.generate(prompts, params, use_tqdm=False)  # type: ignore[attr-defined]
    took = time.monotonic() - began
    return {
        "tokens": [list(o.outputs[0].token_ids) if o else [] for o in outputs],
        "cached": [o.num_cached_tokens if o else None for o in outputs],
        "seconds": took,
        "preempted": preempted(llm),
        "aborted": aborted,
        "not_protected": settle(),
    }


def preempted(llm: object) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")  # type: ignore[attr-defined]


def drive(
    llm: object, prompts: list, params: list, request: dict, replies: IO[str]
) -> tuple[list, int | None]:
    """Steps the engine by hand: (last output of every request or None, index of the one that was aborted)."""
    engine = llm.llm_engine  # type: ignore[attr-defined]
    scheduler = engine.engine_core.engine_core.scheduler
    names = [f"{time.monotonic_ns()}.{number}" for number in range(len(prompts))]
    for name, prompt, each in zip(names, prompts, params, strict=True):
        engine.add_request(name, prompt, each)
    seen: dict[str, object] = {}
    aborted, losses = None, {}
    while engine.has_unfinished_requests():
        seen.update((output.request_id, output) for output in engine.step())
        so_far = [list(seen[n].outputs[0].token_ids) if n in seen else [] for n in names]  # type: ignore[attr-defined]
        # vLLM's own counter hears of a preemption when its request has come back.
        losses.update(
            (known.request_id, known.num_preemptions) for known in scheduler.requests.values()
        )
        count, die = sum(losses.values()), request.get("die")
        if die and sum(map(len, so_far)) >= die["tokens"] and count >= die["preempted"]:
            print(json.dumps({"tokens": so_far, "preempted": count}), file=replies, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        for known in list(scheduler.requests.values()):
            if aborted is None and known.status.name == request.get("abort_in"):
                (aborted,) = (i for i, n in enumerate(names) if known.request_id.startswith(n))
                engine.abort_request([names[aborted]])
    return [seen.get(n) for n in names], aborted


def settle() -> list[str]:
    """Waits for the snapshots of an in-process engine; says why any connector of this process is not protected."""
    from vllm.distributed import kv_transfer

    if not kv_transfer.has_kv_transfer_group():
        return []
    group = kv_transfer.get_kv_transfer_group()
    reasons = []
    for connector in getattr(group, "sub_connectors", [group]):
        half = getattr(connector, "_worker", None)
        if half is not None:
            half._tier.wait(20.0)
        if getattr(connector, "not_protected", None):
            reasons.append(connector.not_protected)
    return reasons


def inject(faults: list[tuple]) -> None:
    """Every disk log that this process opens from here on has these faults, below io_uring too."""
    from dynamo_gpu_ft import native

    core = native.load()
    opened = core.DiskLog.open
    core.DiskLog.open = lambda path, **how: opened(path, faults=faults, **how)


def main() -> None:
    if sys.argv[1] == "--nursery":
        import nursery

        for name in nursery.IMPORTS:
            importlib.import_module(name)
        said = nursery.serve(int(sys.argv[2]))
    else:
        said = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine prints on stdout; replies keep their own descriptor
    from vllm import LLM

    if said.get("disk_faults"):
        inject([tuple(fault) for fault in said["disk_faults"]])
    llm = LLM(**said["llm"])
    print(json.dumps({"ready": True, "not_protected": settle()}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(llm, json.loads(line), replies)), file=replies, flush=True)


if __name__ == "__main__":
    main()
    # What wants to be told of the end is told; taking the interpreter apart would cost a second and show nothing.
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(0)
