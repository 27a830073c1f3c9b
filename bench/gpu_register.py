"""How long it takes to make an arena known to the GPU's driver, per GiB, and how soon the first copies need no detour.

The registration is that of the device copy engine: a thread of its own, chunk by chunk, the engine not held up meanwhile.
"""

import time

from bench.gpu_world import arena_for, marked, opened, place
from bench.rows import Options, Row, row
from dynamo_gpu_ft.kv.device import DeviceTier
from dynamo_gpu_ft.kv.layout import describe

GIB = 1 << 30
DEADLINE_S = 300.0


def measure(options: Options) -> list[Row]:
    import torch

    kind = place(options, "gpu_register")
    size = GIB // 4 if options.quick else 16 * GIB
    block = 2 << 20
    tensors = {"kv": torch.zeros(4, block, dtype=torch.uint8, device=kind)}
    device = opened(kind, list(tensors.values()))
    with arena_for(block, size // block) as made:
        options.say(f"an arena of {size / GIB:g} GiB")
        started = time.perf_counter()
        tier = DeviceTier(made.arena, made.writer, describe(tensors, 4), tensors, device=device)
        usable = time.perf_counter() - started
        first = None
        while not (facts := tier.facts())["registration_done"]:
            if first is None and facts["registered_bytes"]:
                first = time.perf_counter() - started
            if time.perf_counter() - started > DEADLINE_S:
                break
            time.sleep(0.001)
        took = facts["registration_seconds"]
        registered = facts["registered_bytes"] / GIB
        closing = time.perf_counter()
        tier.close(60.0)
        closing = time.perf_counter() - closing
    note = f"{registered:.3g} of {size / GIB:g} GiB registered, huge pages {'yes' if facts['huge_pages'] else 'no'}"
    rows = [
        row("gpu_register.per_gib", took / max(registered, 1e-9), "s", note=note),
        row(
            "gpu_register.engine_usable",
            usable,
            "s",
            note="the copy engine takes work from then on",
        ),
        row("gpu_register.first_chunk", first if first is not None else took, "s"),
        row("gpu_register.close_per_gib", closing / max(registered, 1e-9), "s"),
    ]
    return marked(rows, kind)
