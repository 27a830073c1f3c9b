"""Small real models for the demo, the engine tests and the benches, made once into a cache directory.

Nothing is downloaded: the weights come from an installed Python package or from a seed.
"""

from dynamo_gpu_ft.cli.models.recipes import (
    RECIPES,
    smollm2,
    smollm2_moe,
    smollm2_wide,
    tiny_llama,
    tiny_moe,
)

__all__ = ["RECIPES", "smollm2", "smollm2_moe", "smollm2_wide", "tiny_llama", "tiny_moe"]
