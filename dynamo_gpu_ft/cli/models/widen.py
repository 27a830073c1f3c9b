"""Gives a Llama folder more attention heads without changing what it computes, so that more ranks divide it.

Used for tensor-parallel runs of SmolLM2, whose 9 query and 3 KV heads no 2 divides.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_gpu_ft.cli.models.cache import say
from dynamo_gpu_ft.cli.models.from_gguf import write_json
from dynamo_gpu_ft.errors import GpuFtError

if TYPE_CHECKING:
    import torch


def make(source: Path, folder: Path, *, query_heads: int, kv_heads: int) -> None:
    """Writes the widened copy of `source` into `folder`.

    The added heads come last, with zero rows in q, k and v: their values are zero, whatever they attend to. Zero
    columns in o keep even that out of the sum. Each KV head must serve as many query heads as before, else the old
    heads would change partners.
    """
    import safetensors.torch

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    old_query, old_kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["head_dim"]
    if query_heads * old_kv != old_query * kv_heads or query_heads < old_query:
        raise GpuFtError(
            f"heads cannot be widened to {query_heads} query and {kv_heads} KV heads",
            where=source.name,
            value=(old_query, old_kv),
            rule="the number of query heads per KV head must stay",
            remedy=f"{kv_heads * (old_query // old_kv)} query heads for {kv_heads} KV heads",
        )
    say(f"widening {source.name} to {query_heads} query and {kv_heads} KV heads")
    weights = safetensors.torch.load_file(str(source / "model.safetensors"))
    rows = {"q_proj": query_heads, "k_proj": kv_heads, "v_proj": kv_heads}
    for name, tensor in weights.items():
        projection = name.split(".")[-2] if "self_attn" in name else ""
        if projection in rows:
            weights[name] = _padded(tensor, 0, rows[projection] * head_dim)
        elif projection == "o_proj":
            weights[name] = _padded(tensor, 1, query_heads * head_dim)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name.startswith(
            ("tokenizer", "generation_config", "chat")
        ):
            shutil.copyfile(path, folder / path.name)
    config |= {"num_attention_heads": query_heads, "num_key_value_heads": kv_heads}
    write_json(folder / "config.json", config)
    safetensors.torch.save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})


def _padded(tensor: "torch.Tensor", dim: int, size: int) -> "torch.Tensor":
    shape = list(tensor.shape)
    shape[dim] = size
    wide = tensor.new_zeros(shape)
    wide.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return wide
