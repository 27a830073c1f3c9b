"""Who a vLLM engine is, from its configuration alone: what goes where in the record, and what is refused as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_gpu_ft.engines.vllm.identity import identify
from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.geometry import Opaque
from dynamo_gpu_ft.kv.layout import Facts


def spec(kind: str = "FullAttentionSpec", **how: Any) -> Any:
    fields = {
        "block_size": 16,
        "page_size_bytes": 16 * 1024,
        "head_size": 64,
        "head_size_v": 64,
        "dtype": "torch.bfloat16",
        "tokens_per_state": 1,
    }
    return type(kind, (), {**fields, **how})()


def layer(backend: str, **how: Any) -> Any:
    kind = type("Backend", (), {"__module__": f"vllm.v1.attention.backends.{backend}"})
    return SimpleNamespace(get_attn_backend=lambda: kind, **how)


def engine(*specs: Any, layers: dict[str, Any] | None = None, **parallel: Any) -> tuple[Any, Any]:
    """(vllm_config, kv_cache_config) with one KV cache group per spec."""
    layers = layers if layers is not None else {"l0": layer("flash_attn")}
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(
            **{
                "tensor_parallel_size": 2,
                "data_parallel_size": 1,
                "data_parallel_rank": 0,
                **parallel,
            }
        ),
        cache_config=SimpleNamespace(
            enable_prefix_caching=True, cache_dtype="auto", prefix_caching_hash_algo="sha256"
        ),
        model_config=SimpleNamespace(
            model="m",
            revision="r",
            quantization=None,
            dtype="torch.bfloat16",
            hf_text_config=SimpleNamespace(rope_parameters=None),
            get_total_num_kv_heads=lambda: 8,
        ),
        kv_transfer_config=SimpleNamespace(engine_id="e"),
        compilation_config=SimpleNamespace(static_forward_context=layers),
    )
    groups = [SimpleNamespace(kv_cache_spec=s, layer_names=list(layers) or ["l0"]) for s in specs]
    return config, SimpleNamespace(kv_cache_groups=groups, num_blocks=100, kv_cache_layout="LBNHC")


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ((spec(), spec("SlidingWindowSpec")), "several KV cache groups"),
        ((spec(), spec("MambaSpec")), "several KV cache groups"),
        ((spec(), spec()), "several KV cache groups"),
        ((), "several KV cache groups"),
        ((spec("SlidingWindowSpec"),), "SlidingWindowSpec"),
        ((spec("SlidingWindowMLASpec"),), "SlidingWindowMLASpec"),
        ((spec("MambaSpec"),), "MambaSpec"),
        ((spec("ChunkedLocalAttentionSpec"),), "ChunkedLocalAttentionSpec"),
        ((spec("UniformTypeKVCacheSpecs"),), "UniformTypeKVCacheSpecs"),
        ((spec("CrossAttentionSpec"),), "CrossAttentionSpec"),
    ],
)
def test_hybrid_models_are_refused_as_a_whole_with_a_reason(specs: Any, reason: str) -> None:
    with pytest.raises(NotProtected, match=reason):
        identify(*engine(*specs))


def test_the_engine_part_does_not_change_with_how_the_kv_is_cut_up() -> None:
    two = identify(*engine(spec()))
    one = identify(*engine(spec(block_size=64, page_size_bytes=1), tensor_parallel_size=1))
    assert two.engine == one.engine
    assert two.placement != one.placement
    assert two.engine["hash"] == "sha256"


def test_facts_are_known_where_the_attention_layers_are() -> None:
    found = identify(*engine(spec()))
    assert found.facts == Facts(
        axes="BHNC",
        block_tokens=16,
        heads=8,
        tp=2,
        dtype="torch.bfloat16",
        parts=(("k", 64), ("v", 64)),
        inner="rows",
    )
    latent = identify(
        *engine(spec("MLAAttentionSpec", head_size=576), layers={"l0": layer("flashmla")})
    )
    assert isinstance(latent.facts, Facts)
    assert (latent.facts.heads, latent.facts.parts) == (1, (("latent", 576),))


@pytest.mark.parametrize(
    ("how", "layers", "why"),
    [
        ({"num_head_slots": 4}, None, "padded or packed"),
        ({"page_size_padded": 1 << 20}, None, "padded or packed"),
        ({"tokens_per_state": 4}, None, "one state per token"),
        ({}, {}, "no attention layers"),
        ({}, {"l0": layer("flashinfer")}, "flashinfer"),
        ({}, {"l0": layer("rocm_aiter_fa")}, "rocm_aiter_fa"),
        (
            {},
            {"l0": layer("flash_attn"), "l1": layer("flex_attention_of_mine")},
            "different kernels",
        ),
    ],
)
def test_what_only_a_kernel_knows_is_opaque_instead_of_guessed(
    how: Any, layers: Any, why: str
) -> None:
    found = identify(*engine(spec(**how), layers=layers)).facts
    assert isinstance(found, Opaque)
    assert why in found.why


@pytest.mark.engine
@pytest.mark.parametrize(
    ("loop", "inner"), [("vec", "k_columns"), ("vec16", "k_columns"), ("amx", "cell:cpu_attn.amx")]
)
def test_the_cpu_backends_inner_loop_decides_the_order(loop: str, inner: str) -> None:
    found = identify(*engine(spec(), layers={"l0": layer("cpu_attn", isa=loop)})).facts
    assert isinstance(found, Facts)
    assert found.inner == inner
