"""What vLLM's KV tensors mean: the facts that turn their shapes and strides into a convertible layout.

Asked by `identity` in every process; answered in workers, where the attention layers exist. Where a kernel keeps an order of
its own, the answer says so instead of guessing.
"""

from __future__ import annotations

from typing import Any

from dynamo_gpu_ft.kv.geometry import Opaque
from dynamo_gpu_ft.kv.layout import Facts

#: Modules of attention backends that keep one token's K, then its V, of one head as one row of the logical [block, head,
#: token, content] cache (read in 0.31.0 and 0.32.0). By module: two backends call themselves FLASH_ATTN. All others are opaque
#: until somebody has looked.
ROWS = frozenset({"flash_attn", "triton_attn", "flex_attention"})

#: The same for a single latent row per token.
LATENT_ROWS = frozenset({"triton_mla", "flashmla", "flashattn_mla", "cutlass_mla", "cpu_mla"})

#: Inner loops of the CPU backend that keep K of a kernel block by columns, then V by rows.
K_COLUMNS = frozenset({"vec", "vec16"})


def facts(vllm_config: Any, group: Any) -> Facts | Opaque:
    """Facts about the one KV cache group `group` (a `KVCacheGroupSpec` of full attention or MLA)."""
    spec, cache = group.kv_cache_spec, vllm_config.cache_config
    mla = type(spec).__name__ == "MLAAttentionSpec"
    special = ("page_size_padded", "num_head_slots", "state_content_bytes")
    if any(getattr(spec, name, None) is not None for name in special):
        return Opaque("its pages are padded or packed in a way of their own")
    if getattr(spec, "tokens_per_state", 1) != 1:
        return Opaque("it does not store one state per token")
    if "per_token" in str(cache.cache_dtype) or str(cache.cache_dtype).startswith(
        ("nvfp4", "turboquant", "int4")
    ):
        return Opaque(f"the order of a {cache.cache_dtype} cache is not known")
    inner = _inner(vllm_config, group, mla)
    if isinstance(inner, Opaque):
        return inner
    k, v = int(spec.head_size), int(getattr(spec, "head_size_v", 0) or 0)
    return Facts(
        axes="BHNC",
        block_tokens=int(spec.block_size),
        heads=1 if mla else int(vllm_config.model_config.get_total_num_kv_heads()),
        tp=int(vllm_config.parallel_config.tensor_parallel_size),
        dtype=str(spec.dtype),
        parts=(("latent", k),) if mla else (("k", k), ("v", v or k)),
        inner=inner,
    )


def _inner(vllm_config: Any, group: Any, mla: bool) -> str | Opaque:
    """How one head of one kernel block is ordered, by the backend of the group's layers; they all have to agree."""
    context = getattr(vllm_config.compilation_config, "static_forward_context", None) or {}
    layers = [context[name] for name in group.layer_names if name in context]
    if not layers:
        return Opaque("this process has no attention layers to ask")
    found = {_inner_of(layer, vllm_config, group.kv_cache_spec, mla) for layer in layers}
    return found.pop() if len(found) == 1 else Opaque("its layers use different kernels")


def _inner_of(layer: Any, vllm_config: Any, spec: Any, mla: bool) -> str | Opaque:
    backend = str(layer.get_attn_backend().__module__).rpartition(".")[2]
    if backend in (LATENT_ROWS if mla else ROWS):
        return "rows"
    if backend != "cpu_attn" or mla:
        return Opaque(f"how the attention backend {backend} orders its cache is not known")
    from vllm.v1.attention.backends import cpu_attn

    loop = getattr(layer, "isa", None) or cpu_attn._get_attn_isa(
        vllm_config.model_config.dtype,
        int(spec.block_size),
        int(spec.head_size),
        vllm_config.cache_config.cache_dtype,
    )
    return "k_columns" if loop in K_COLUMNS else f"cell:cpu_attn.{loop}"
