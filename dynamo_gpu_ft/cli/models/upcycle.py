"""Makes a Mixtral out of a Llama folder: every expert is its MLP with some noise, the router is random. It talks like the source, roughly.

For expert parallelism with a real model of a small machine; no sparse model that small is published.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_gpu_ft.cli.models.cache import say
from dynamo_gpu_ft.cli.models.from_gguf import write_json

if TYPE_CHECKING:
    import torch


def make(source: Path, folder: Path, *, experts: int, chosen: int, noise: float) -> None:
    """Writes the up-cycled copy of `source` into `folder`. `noise`: standard deviation, as a share of each matrix's own; seeded."""
    import safetensors.torch
    import torch

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    say(f"up-cycling {source.name} to {experts} experts, {chosen} for each token")
    random = torch.Generator().manual_seed(0)

    def varied(matrix: "torch.Tensor") -> "torch.Tensor":
        wide = matrix.float()
        spread = torch.randn(wide.shape, generator=random) * (noise * float(wide.std()))
        return (wide + spread).to(matrix.dtype)

    weights: dict[str, torch.Tensor] = {}
    parts = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for name, tensor in safetensors.torch.load_file(str(source / "model.safetensors")).items():
        layer, found, rest = name.partition(".mlp.")
        if not found:
            weights[name] = tensor
            continue
        part = parts[rest.partition(".")[0]]
        for expert in range(experts):
            weights[f"{layer}.block_sparse_moe.experts.{expert}.{part}.weight"] = varied(tensor)
        if part == "w1":
            gate = torch.randn(experts, tensor.shape[1], generator=random) * 0.05
            weights[f"{layer}.block_sparse_moe.gate.weight"] = gate.to(tensor.dtype)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name.startswith(
            ("tokenizer", "generation_config", "chat")
        ):
            shutil.copyfile(path, folder / path.name)
    config |= {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": experts,
        "num_experts_per_tok": chosen,
        "sliding_window": None,
    }
    write_json(folder / "config.json", config)
    safetensors.torch.save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
