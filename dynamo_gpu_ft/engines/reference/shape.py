"""What a Hugging Face `config.json` says of a Llama or Mixtral model, checked, and nothing that this engine does not compute.

Read by the driver and by every rank; all sizes of weights, KV and cuts follow from it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from dynamo_gpu_ft.errors import ConfigError


class Rope(msgspec.Struct, frozen=True):
    """Rotary embedding: `kind` is "default", "linear" or "llama3"; the other fields are those of Llama 3's scaling."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


class Shape(msgspec.Struct, frozen=True):
    """Sizes of one model. `experts` is 0 for a dense one; `inner` is then the MLP's, else each expert's."""

    family: str
    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    eps: float
    tied: bool
    rope: Rope
    experts: int = 0
    chosen: int = 0
    dtype: str = "bfloat16"
    eos: tuple[int, ...] = ()

    @property
    def group(self) -> int:
        """Query heads that share a KV head: what is cut up is KV heads, with all their query heads."""
        return self.heads // self.kv_heads


#: Keys that change the arithmetic, with the values under which this engine's is right.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
}
_FAMILIES = {"llama", "mixtral"}


def read(folder: Path) -> Shape:
    """The shape of the checkpoint in `folder`. Raises `ConfigError` with the key that is wrong or not supported."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(path, str(error), "a readable config.json") from error
    if not isinstance(config, dict) or config.get("model_type") not in _FAMILIES:
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise _wrong(path, found, f"model_type is one of {', '.join(sorted(_FAMILIES))}")
    for key, values in _ONLY.items():
        if config.get(key, values[0]) not in values:
            raise _wrong(path, {key: config[key]}, f"{key} is {values[0]!r}")
    try:
        return _shape(config)
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise _wrong(path, str(error), "every size as a number above 0") from error


def _shape(config: dict[str, Any]) -> Shape:
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    mixtral = config["model_type"] == "mixtral"
    eos = config.get("eos_token_id")
    shape = Shape(
        family=config["model_type"],
        vocab=int(config["vocab_size"]),
        hidden=hidden,
        inner=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=int(config.get("head_dim") or hidden // heads),
        positions=int(config["max_position_embeddings"]),
        eps=float(config["rms_norm_eps"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope=_rope(config),
        experts=int(config["num_local_experts"]) if mixtral else 0,
        chosen=int(config["num_experts_per_tok"]) if mixtral else 0,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
    )
    sizes = (shape.vocab, hidden, shape.inner, shape.layers, heads, kv_heads, shape.head_dim)
    if min(sizes) < 1 or heads % kv_heads or (mixtral and not 1 <= shape.chosen <= shape.experts):
        raise ValueError(f"sizes {sizes}: heads are a multiple of KV heads")
    return shape


def _rope(config: dict[str, Any]) -> Rope:
    """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (4)."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = str(found.get("rope_type") or found.get("type") or "default")
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope of kind {kind!r}: default, linear and llama3 are known")
    return Rope(
        theta=float(found.get("rope_theta") or config.get("rope_theta") or 10000.0),
        kind=kind,
        factor=float(found.get("factor", 1.0)),
        low_freq_factor=float(found.get("low_freq_factor", 1.0)),
        high_freq_factor=float(found.get("high_freq_factor", 4.0)),
        original_positions=int(found.get("original_max_position_embeddings", 8192)),
    )


def _wrong(path: Path, value: object, rule: str) -> ConfigError:
    return ConfigError(
        "the reference engine cannot run this model",
        where=str(path),
        value=value,
        rule=rule,
        remedy="a Llama or Mixtral checkpoint in Hugging Face form",
    )
