"""Two ranks of the reference engine on one GPU, over NCCL and over gloo: the tokens of the CPU, and a rank killed while the other lives on."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")


from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.events import StateChanged  # noqa: E402
from tests.engines.reference_drill import Drill, Fault, prompts  # noqa: E402
from tests.engines.reference_world import ThreadEngine  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]
#: The first calls of a fresh NCCL communicator load code; a rank in them is not hung.
PATIENT = {"hang_after_s": 5.0, "hang_floor_s": 5.0, "step_deadline_s": 30}


@pytest.fixture(params=["nccl", "gloo"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """NCCL needs a version that lets two ranks share a GPU; over gloo the tensors go through host memory."""
    if request.param == "nccl":
        from dynamo_gpu_ft.recovery.comm.nccl_library import NcclLibrary

        if NcclLibrary().version < 23000:
            pytest.skip("this NCCL refuses several ranks on one GPU")
        monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
        monkeypatch.setenv("NCCL_MAX_CTAS", "2")
    return str(request.param)


def wide_llama(folder: Path, *, layers: int = 8) -> Path:
    """A Llama of a gigabyte in bfloat16, with seeded weights: what a refill is timed with."""
    import safetensors.torch

    vocab, hidden, inner = 4096, 2048, 8192
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    sizes = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, rows in (("q", hidden), ("k", 1024), ("v", 1024)):
            sizes[f"{at}.self_attn.{name}_proj"] = (rows, hidden)
        sizes[f"{at}.self_attn.o_proj"] = (hidden, hidden)
        sizes[f"{at}.mlp.gate_proj"] = sizes[f"{at}.mlp.up_proj"] = (inner, hidden)
        sizes[f"{at}.mlp.down_proj"] = (hidden, inner)
    random = torch.Generator().manual_seed(1)
    made = {
        f"{name}.weight": (torch.randn(*size, generator=random) * 0.02).to(torch.bfloat16)
        for name, size in sizes.items()
    }
    norms = ["model.norm", *(f"model.layers.{n}.{w}_layernorm" for n in range(layers) for w in ("input", "post_attention"))]  # fmt: skip
    made |= {f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(made, str(folder / "model.safetensors"), {"format": "pt"})
    return folder


def opened(pid: int) -> list[tuple[str, str]]:
    """What a process has open of the driver: a context that was lost and made again would have other descriptors."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("/dev/nvidia"):
            found.append((entry.name, target))
    return sorted(found)


def times(drill: Drill, begun: int) -> dict[str, float]:
    """Seconds of the recovery's parts."""
    states = [e for e in drill.events[begun:] if isinstance(e, StateChanged)]
    found = {
        f"{one.state} to {other.state}": other.time - one.time
        for one, other in itertools.pairwise(states)
    }
    facts: dict[str, Any] = drill.engine.group.facts
    marks = [
        name for name in ("began", "loaded", "joined", "restored", "validated") if name in facts
    ]
    for one, other in itertools.pairwise(marks):
        found[f"{one} to {other}"] = facts[other] - facts[one]
    return found


def test_tokens_are_those_of_the_cpu_and_a_survivor_keeps_all_that_it_has(
    backend: str, memory_folder: Path
) -> None:
    torch.set_num_threads(4)
    alone = ThreadEngine(tiny_llama())
    expected = [alone.generate(prompt, 24) for prompt in prompts(1)]
    how = {"tp": 2, "devices": 1, "device": "cuda", "backend": backend, "arena_name": "gpu"}
    with Drill(tiny_llama(), memory_folder, **how, **PATIENT) as drill:  # type: ignore[arg-type]
        assert drill.run(1).tokens == expected
        for victim in (1, 0):
            survivor = drill.engine.crew.members[1 - victim].pid
            driver, begun = opened(survivor), len(drill.events)
            assert driver, "the ranks are on the GPU"
            report = drill.run(1, [Fault("kill", "decode", victim)])
            assert not report.failed
            assert report.tokens == expected
            assert report.kept == {victim: False, 1 - victim: True}
            assert drill.engine.crew.members[1 - victim].pid == survivor
            assert opened(survivor) == driver
            outcome = report.outcomes[-1]
            print(f"{backend}: {outcome.kind} in {outcome.duration_s:.3f} s", end="; ")
            print(", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in times(drill, begun).items()))


def test_a_gigabyte_of_weights_is_refilled_beside_a_survivor(
    backend: str, memory_folder: Path
) -> None:
    model = wide_llama(memory_folder / "model")
    how = {"tp": 2, "devices": 1, "device": "cuda", "backend": backend, "arena_name": "wide", "dtype": "bfloat16"}  # fmt: skip
    with Drill(model, memory_folder, arena_bytes="256MiB", **how, **PATIENT) as drill:  # type: ignore[arg-type]
        wanted = drill.run(1).tokens
        report = drill.run(1, [Fault("kill", "decode", 1)])
        assert not report.failed
        assert report.tokens == wanted
        assert report.kept == {1: False, 0: True}
        facts = drill.engine.group.facts
        source, read, needed, _ = facts["loads"][1]
        rate = read / facts["load_s"] / 1e9
        print(
            f"{backend}: {read / 1e9:.2f} GB of {needed / 1e9:.2f} from the {source} in {facts['load_s']:.3f} s: {rate:.2f} GB/s with digests"
        )
        assert read <= 1.05 * needed
