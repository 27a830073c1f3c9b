"""The orders that `engines.vllm.tensors` claims for vLLM's kernels, asked of the kernels themselves."""

from __future__ import annotations

import pytest

from dynamo_gpu_ft.engines.vllm.tensors import K_COLUMNS

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("loop", sorted(K_COLUMNS))
@pytest.mark.parametrize(("tokens", "width"), [(32, 64), (64, 128), (32, 80)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_cpu_kernels_keep_k_by_columns_and_v_by_rows(
    loop: str, tokens: int, width: int, dtype: str
) -> None:
    import torch
    from vllm import _custom_ops as ops

    heads, kind = 2, getattr(torch, dtype)
    cache = torch.zeros(3, heads, tokens, 2 * width, dtype=kind)
    values = torch.arange(tokens * heads * width).reshape(tokens, heads, width)
    key, value = (values % 251 + 1).to(kind), (values % 199 + 2).to(kind)
    k_cache, v_cache = cache.view(3, heads, 2 * tokens, width).chunk(2, dim=2)
    slots = torch.arange(tokens, dtype=torch.int64) + tokens  # block 1
    ops.cpu_attn_reshape_and_cache(key, value, k_cache, v_cache, slots, loop)
    flat = cache[1].reshape(heads, 2, tokens * width)
    assert torch.equal(flat[:, 0], key.permute(1, 2, 0).reshape(heads, -1))
    assert torch.equal(flat[:, 1], value.permute(1, 0, 2).reshape(heads, -1))
