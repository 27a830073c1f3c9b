"""Fills a folder with a random Llama of 3 million weights and a tokenizer trained on the standard library's own text.

For tests that need a real engine but no sense: it loads in a blink and depends on nothing but a seed.
"""

import importlib.util
from pathlib import Path

from dynamo_gpu_ft.cli.models.from_gguf import write_json

VOCABULARY = 1000
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 256, 4, 8, 4, 32, 512
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make(folder: Path) -> None:
    """Writes config, bfloat16 weights and tokenizer into `folder`. Needs torch, safetensors and tokenizers."""
    _write_tokenizer(folder)
    _write_weights(folder)
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def _write_weights(folder: Path) -> None:
    import safetensors.torch
    import torch

    # The spread of 0.2 makes the random model decided: near-ties between tokens are rare.
    random = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=random) * 0.2).to(torch.bfloat16)

    def ones() -> torch.Tensor:
        return torch.ones(HIDDEN, dtype=torch.bfloat16)

    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        attention, inner = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        weights |= {
            f"{attention}.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
            f"{attention}.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{attention}.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{attention}.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
            f"{inner}.gate_proj.weight": matrix(INNER, HIDDEN),
            f"{inner}.up_proj.weight": matrix(INNER, HIDDEN),
            f"{inner}.down_proj.weight": matrix(HIDDEN, INNER),
            f"model.layers.{layer}.input_layernorm.weight": ones(),
            f"model.layers.{layer}.post_attention_layernorm.weight": ones(),
        }
    weights["model.norm.weight"] = ones()
    weights["lm_head.weight"] = matrix(VOCABULARY, HIDDEN)
    safetensors.torch.save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": 2048,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _texts() -> list[str]:
    """The standard library's own sources: a text that every machine has."""
    places = [
        place
        for package in ("json", "email")
        if (spec := importlib.util.find_spec(package)) is not None
        for place in spec.submodule_search_locations or []
    ]
    return [
        path.read_text(encoding="utf-8")
        for place in places
        for path in sorted(Path(place).glob("*.py"))
    ]
