"""Which slices of which checkpoint tensors a cut needs, under the names of Hugging Face's Llama and Mixtral checkpoints.

Pure data: the ranks hand it to the weight sources, the bench adds its bytes up.
"""

from __future__ import annotations

from collections.abc import Iterator

from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.engines.reference.split import Cut, Range
from dynamo_gpu_ft.recovery.weights.base import Need

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def of(shape: Shape, cut: Cut) -> list[Need]:
    """Every tensor of the shard, each as one box of one checkpoint tensor."""
    found = []
    hidden = (0, shape.hidden)
    if cut.first or (cut.last and shape.tied):
        found.append(Need(EMBED, (cut.vocab, hidden)))
    for layer in range(*cut.layers):
        found += _layer(shape, cut, f"model.layers.{layer}")
    if cut.last:
        found.append(Need(NORM, (hidden,)))
        if not shape.tied:
            found.append(Need(HEAD, (cut.vocab, hidden)))
    return found


def _layer(shape: Shape, cut: Cut, at: str) -> Iterator[Need]:
    hidden = (0, shape.hidden)
    queries = _scaled(cut.heads, shape.group * shape.head_dim)
    keys = _scaled(cut.heads, shape.head_dim)
    yield Need(f"{at}.input_layernorm.weight", (hidden,))
    yield Need(f"{at}.post_attention_layernorm.weight", (hidden,))
    yield Need(f"{at}.self_attn.q_proj.weight", (queries, hidden))
    yield Need(f"{at}.self_attn.k_proj.weight", (keys, hidden))
    yield Need(f"{at}.self_attn.v_proj.weight", (keys, hidden))
    yield Need(f"{at}.self_attn.o_proj.weight", (hidden, queries))
    if not shape.experts:
        yield Need(f"{at}.mlp.gate_proj.weight", (cut.columns, hidden))
        yield Need(f"{at}.mlp.up_proj.weight", (cut.columns, hidden))
        yield Need(f"{at}.mlp.down_proj.weight", (hidden, cut.columns))
        return
    moe = f"{at}.block_sparse_moe"
    yield Need(f"{moe}.gate.weight", ((0, shape.experts), hidden))
    for expert in range(shape.experts):
        yield Need(f"{moe}.experts.{expert}.w1.weight", (cut.columns, hidden))
        yield Need(f"{moe}.experts.{expert}.w3.weight", (cut.columns, hidden))
        yield Need(f"{moe}.experts.{expert}.w2.weight", (hidden, cut.columns))


def _scaled(each: Range, by: int) -> Range:
    return each[0] * by, each[1] * by
