"""The router mask in Triton: for devices whose driver takes neither our fat binary nor NVRTC's output, and to read.

One program per token; runs on a CPU under TRITON_INTERPRET=1, which is how the tests hold it against `router_reference`.
Importing this module needs triton; nothing imports it by itself.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def route_token(
    logits, choose, experts, topk, first, loss, losses, table, counts,
    width, physical, alive, logical, slots, weights, results,
    sigmoid: tl.constexpr, renormalise: tl.constexpr, block: tl.constexpr, picks: tl.constexpr,
):  # fmt: skip
    """`results`: int64 [3] of (error, affected, replaced), zeroed; `block` and `picks`: powers of two from experts and topk on."""
    token = tl.program_id(0)
    column, place = tl.arange(0, block), tl.arange(0, picks)
    inside, wanted = column < experts, place < topk
    out = token * topk + place
    which = tl.load(loss)
    if (which < 0) | (which >= losses):
        tl.atomic_or(results, 2)
        tl.store(logical + out, -1, mask=wanted)
        tl.store(slots + out, -1, mask=wanted)
        tl.store(weights + out, 0.0, mask=wanted)
    else:
        logit = tl.load(logits + token * experts + column, mask=inside, other=-float("inf"))
        value = tl.load(choose + token * experts + column, mask=inside, other=-float("inf"))
        count = tl.load(counts + which * experts + column, mask=inside, other=0)
        live = inside & (count > 0) & (tl.load(alive + column, mask=inside, other=0) != 0)
        wrong = tl.sum(((value != value) | (logit != logit)).to(tl.int32), axis=0) > 0
        few = tl.sum(live.to(tl.int32), axis=0) < topk
        if wrong | few:
            tl.atomic_or(results, tl.where(wrong, 8, 4).to(tl.int64))
            tl.store(logical + out, -1, mask=wanted)
            tl.store(slots + out, -1, mask=wanted)
            tl.store(weights + out, 0.0, mask=wanted)
        else:
            value = tl.where(value == 0, 0.0, value)
            bits = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
            ordered = tl.where(bits >= 2147483648, 4294967295 - bits, bits + 2147483648)
            keys = tl.where(inside, ordered * 1048576 + (1048575 - column), -1)
            mine = tl.zeros([picks], dtype=tl.int32)
            got, rank, replaced = 0, 0, 0
            while got < topk:
                best = tl.max(keys, axis=0)
                expert = (1048575 - (best % 1048576)).to(tl.int32)
                is_live = tl.sum((live & (column == expert)).to(tl.int32), axis=0)
                keys = tl.where(column == expert, -1, keys)
                mine = tl.where((place == got) & (is_live > 0), expert, mine)
                replaced += tl.where((is_live == 0) & (rank < topk), 1, 0)
                got += is_live
                rank += 1
            chosen = tl.load(logits + token * experts + mine, mask=wanted, other=-float("inf"))
            if sigmoid:
                weight = 1.0 / (1.0 + tl.exp(-chosen))
                total = tl.sum(tl.where(wanted, weight, 0.0), axis=0) if renormalise else 1.0
            else:
                pool = tl.where(live, logit, -float("inf"))
                top = tl.max(chosen, axis=0) if renormalise else tl.max(pool, axis=0)
                weight = tl.exp(chosen - top)
                total = (
                    tl.sum(weight, axis=0) if renormalise else tl.sum(tl.exp(pool - top), axis=0)
                )
            many = tl.load(counts + which * experts + mine, mask=wanted, other=1)
            replica = (first + token + mine) % many
            at = (which * experts + mine) * width + tl.where(many <= width, replica, 0)
            slot = tl.load(table + at, mask=wanted, other=0)
            outside = wanted & ((many > width) | (slot < 0) | (slot >= physical))
            if tl.sum(outside.to(tl.int32), axis=0) > 0:
                tl.atomic_or(results, 2)
                tl.store(logical + out, -1, mask=wanted)
                tl.store(slots + out, -1, mask=wanted)
                tl.store(weights + out, 0.0, mask=wanted)
            else:
                tl.store(logical + out, mine, mask=wanted)
                tl.store(slots + out, slot, mask=wanted)
                tl.store(weights + out, weight / total, mask=wanted)
                if replaced > 0:
                    tl.atomic_add(results + 1, 1)
                    tl.atomic_add(results + 2, replaced.to(tl.int64))


def route(
    logits: Any, table: Any, counts: Any, loss: Any, topk: int, physical: int, *,
    flags: int = 2, choose: Any = None, alive: Any = None, first: int = 0,
) -> Any:  # fmt: skip
    """As `router_reference.route`, with `loss` an int32 tensor [1]; the results stay on the device: (logical, slots, weights, int64 [3])."""
    import torch

    tokens, experts = logits.shape
    logical = torch.full((tokens, topk), -1, dtype=torch.int32, device=logits.device)
    slots, weights = torch.full_like(logical, -1), torch.zeros_like(logical, dtype=torch.float32)
    results = torch.zeros(3, dtype=torch.int64, device=logits.device)
    if not (1 <= topk <= min(32, experts) and experts <= 1024 and table.shape[2] >= 1):
        results[0] = 1 if tokens else 0
    elif tokens:
        if alive is None:
            alive = torch.ones(experts, dtype=torch.uint8, device=logits.device)
        route_token[(tokens,)](
            logits, logits if choose is None else choose, experts, topk, first, loss, len(table), table, counts,
            table.shape[2], physical, alive.to(torch.uint8), logical, slots, weights, results,
            sigmoid=bool(flags & 1), renormalise=bool(flags & 2),
            block=triton.next_power_of_2(experts), picks=triton.next_power_of_2(topk),
        )  # fmt: skip
    return logical, slots, weights, results
