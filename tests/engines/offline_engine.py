"""The program behind `harness.OfflineEngine`: one real vLLM engine that answers JSON lines on stdin with JSON lines on stdout.

Argument: JSON {"llm": arguments of vllm.LLM}. Each request line: {"prompts": [[token, ...], ...], "max_tokens": n,
"transfer_params": what each request says to connectors, or null}.
"""

import json
import os
import sys
import time


def answer(llm: object, request: dict) -> dict:
    from vllm import SamplingParams

    said = request.get("transfer_params")
    params = SamplingParams(
        temperature=0,
        max_tokens=request["max_tokens"],
        ignore_eos=True,
        extra_args={"kv_transfer_params": said} if said else None,
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    began = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)  # type: ignore[attr-defined]
    took = time.monotonic() - began
    return {
        "tokens": [list(o.outputs[0].token_ids) for o in outputs],
        "cached": [o.num_cached_tokens for o in outputs],
        "seconds": took,
        "preempted": sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"),  # type: ignore[attr-defined]
        "not_protected": settle(),
    }


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


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine prints on stdout; replies keep their own descriptor
    from vllm import LLM

    llm = LLM(**json.loads(sys.argv[1])["llm"])
    print(json.dumps({"ready": True, "not_protected": settle()}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(llm, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
