"""Who this engine is: the engine part of its namespace record, its shards, and why it may not be protected.

Read from vLLM's configuration alone, so that the scheduler and every worker compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.engines.vllm import compat, tensors
from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv import namespace
from dynamo_gpu_ft.kv.geometry import Opaque
from dynamo_gpu_ft.kv.layout import Facts


@dataclass(frozen=True, slots=True)
class Identity:
    """`engine` and `placement` go into the namespace record: which KV values, and how they are cut up. `facts` describe the
    tensors (known in workers only); `part` names the arena of one data-parallel rank."""

    engine: dict[str, Any]
    placement: dict[str, Any]
    facts: Facts | Opaque
    engine_id: str
    shards: tuple[int, ...]
    block_size: int
    num_blocks: int
    part: str


def _refuse(what: str, value: object, rule: str) -> NotProtected:
    return NotProtected(
        what,
        where="vLLM configuration",
        value=value,
        rule=rule,
        remedy="serve without the connector",
    )


def identify(vllm_config: Any, kv_cache_config: Any) -> Identity:
    """Raises `NotProtected` for what is not supported yet, as a whole rather than half."""
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise _refuse(
            "models with several KV cache groups are not supported yet", len(groups), "one group"
        )
    for name in (
        "pipeline_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    ):
        if getattr(parallel, name, 1) > 1:
            raise _refuse(f"{name} > 1 is not supported yet", getattr(parallel, name), "1")
    if not cache.enable_prefix_caching:
        raise _refuse(
            "prefix caching is off, so blocks have no hashes", False, "--enable-prefix-caching"
        )
    spec = groups[0].kv_cache_spec
    if type(spec).__name__ not in ("FullAttentionSpec", "MLAAttentionSpec"):
        raise _refuse(
            "this kind of KV cache is not supported yet",
            type(spec).__name__,
            "full attention or MLA",
        )
    model = vllm_config.model_config
    tp = int(parallel.tensor_parallel_size)
    dp = int(parallel.data_parallel_size)
    engine = {
        "engine": "vllm",
        "version": compat.version(),
        "model": str(model.model),
        "revision": str(model.revision),
        "weights": namespace.weights_id(Path(str(model.model))),
        "quantization": str(model.quantization),
        "dtype": str(model.dtype),
        "cache_dtype": str(cache.cache_dtype),
        "spec": type(spec).__name__,
        "hash": compat.hash_algorithm(vllm_config),
        "rope": str(getattr(model.hf_text_config, "rope_parameters", None)),
    }
    placement = {
        "block_size": int(spec.block_size),
        "page_bytes": int(spec.page_size_bytes),
        "kv_layout": compat.kv_layout(kv_cache_config),
        "tensor_parallel": tp,
    }
    transfer = vllm_config.kv_transfer_config
    return Identity(
        engine=engine,
        placement=placement,
        facts=tensors.facts(vllm_config, groups[0]),
        engine_id=str(transfer.engine_id),
        shards=tuple(range(tp)),
        block_size=int(spec.block_size),
        num_blocks=int(kv_cache_config.num_blocks),
        part=f"dp{parallel.data_parallel_rank}" if dp > 1 else "",
    )
