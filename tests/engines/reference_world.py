"""Tiny checkpoints and what transformers says of them, for the tests of the reference engine; and shards computed by threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dynamo_gpu_ft.engines.reference import needs, shape, split
from dynamo_gpu_ft.engines.reference.model import Stage, Tile
from dynamo_gpu_ft.engines.reference.pieces import Capture, Pieces
from dynamo_gpu_ft.engines.reference.sampling import Sampling, draw
from dynamo_gpu_ft.engines.reference.tiles import Piece, pack
from dynamo_gpu_ft.engines.reference.weights import ShardWeights
from dynamo_gpu_ft.recovery.weights.slices import SliceSource
from tests.engines.simulated_device import SimulatedDevice

TILE, BLOCK = 8, 16


def tiny_mixtral(folder: Path, *, files: int = 2, experts: int = 4, layers: int = 4) -> Path:
    """A Mixtral of 4 KV heads with seeded weights, in `files` files with an index."""
    import safetensors.torch

    vocab, hidden, inner = 300, 64, 96
    config = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "dtype": "float32", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False, "num_local_experts": experts,
        "num_experts_per_tok": 2, "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    random = torch.Generator().manual_seed(1)
    made: dict[str, torch.Tensor] = {}

    def matrix(name: str, *size: int) -> None:
        made[name] = torch.randn(*size, generator=random) * 0.25

    matrix("model.embed_tokens.weight", vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, size in (
            ("q", (128, hidden)),
            ("k", (64, hidden)),
            ("v", (64, hidden)),
            ("o", (hidden, 128)),
        ):
            matrix(f"{at}.self_attn.{name}_proj.weight", *size)
        matrix(f"{at}.block_sparse_moe.gate.weight", experts, hidden)
        for expert in range(experts):
            matrix(f"{at}.block_sparse_moe.experts.{expert}.w1.weight", inner, hidden)
            matrix(f"{at}.block_sparse_moe.experts.{expert}.w2.weight", hidden, inner)
            matrix(f"{at}.block_sparse_moe.experts.{expert}.w3.weight", inner, hidden)
        made[f"{at}.input_layernorm.weight"] = torch.rand(hidden, generator=random) + 0.5
        made[f"{at}.post_attention_layernorm.weight"] = torch.rand(hidden, generator=random) + 0.5
    made["model.norm.weight"] = torch.ones(hidden)
    matrix("lm_head.weight", vocab, hidden)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(made)
    weight_map = {}
    for part in range(files):
        name = f"model-{part + 1:05}-of-{files:05}.safetensors"
        chosen = {each: made[each] for each in names[part::files]}
        safetensors.torch.save_file(chosen, str(folder / name), {"format": "pt"})
        weight_map |= dict.fromkeys(chosen, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def greedy_of_transformers(folder: Path, prompt: Sequence[int], count: int) -> list[int]:
    """The oracle: Hugging Face's own greedy tokens in float32."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([list(prompt)]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return [int(token) for token in out[0, len(prompt) :]]


class ThreadJoint:
    """`Joint` of shards that are threads of this process."""

    def __init__(self, count: int) -> None:
        self.parts: list[Any] = [None] * count
        self.barrier = threading.Barrier(count)

    def of(self, place: int) -> ThreadJoint.Member:
        return ThreadJoint.Member(self, place)

    class Member:
        def __init__(self, joint: ThreadJoint, place: int) -> None:
            self._joint, self._place = joint, place

        def _all(self, part: torch.Tensor) -> list[torch.Tensor]:
            self._joint.parts[self._place] = part
            self._joint.barrier.wait(60)
            found = list(self._joint.parts)
            self._joint.barrier.wait(60)
            return found

        def sum(self, part: torch.Tensor) -> torch.Tensor:
            first, *others = self._all(part)
            for other in others:
                first = first + other
            return first

        def join(self, part: torch.Tensor) -> torch.Tensor:
            return torch.cat(self._all(part), dim=-1)


def _thread(target: Callable[..., None], *args: Any) -> threading.Thread:
    return threading.Thread(target=target, args=args)


class ThreadEngine:
    """All shards of a split in one process, a thread per place, stages in turn: the arithmetic without processes.

    With a `world`, all tensors are on its device; who makes and calls this is `here`."""

    def __init__(
        self,
        folder: Path,
        tp: int = 1,
        pp: int = 1,
        *,
        blocks: int = 64,
        cuts: split.Split | None = None,
        capture: Capture | None = None,
        world: SimulatedDevice | None = None,
    ) -> None:
        self.world, self.device = world, world.device if world else torch.device("cpu")
        self.shape = shape.read(folder)
        self.split = cuts or split.even(self.shape, tp, pp)
        source = SliceSource(folder)
        self.stages, self.caches, self.pieces = [], [], []
        for shard in range(self.split.shards):
            cut = self.split.cut(shard)
            weights = ShardWeights(needs.of(self.shape, cut), torch.float32, self.device)
            source.load(weights.needs, weights, 60.0)
            size = (
                cut.heads[1] - cut.heads[0],
                blocks,
                cut.layers[1] - cut.layers[0],
                2,
                BLOCK,
                self.shape.head_dim,
            )
            self.caches.append(torch.zeros(size, device=self.device))
            self.pieces.append(Pieces(capture))
            self.stages.append(
                Stage(self.shape, cut, weights.tensors, self.caches[-1], self.pieces[-1])
            )

    def step(self, pieces: Sequence[Piece], tile: int = TILE) -> dict[str, int]:
        drawn: dict[str, int] = {}
        for rows in pack(pieces, tile, BLOCK):
            packed = Tile(
                *(
                    torch.tensor(c, device=self.device)
                    for c in (rows.tokens, rows.positions, rows.blocks, rows.places, rows.tables)
                )
            )
            state: torch.Tensor | None = None
            for stage in range(self.split.pp):
                state = self._stage(stage, packed, state, bool(rows.draws))
            for row, piece in rows.draws:
                assert piece.sampling is not None
                assert state is not None
                drawn[piece.request] = draw(
                    state[row], piece.sampling, piece.request, piece.start + len(piece.tokens)
                )
        return drawn

    def _stage(
        self, stage: int, tile: Tile, state: torch.Tensor | None, logits: bool
    ) -> torch.Tensor:
        tp = self.split.tp
        joint, results = ThreadJoint(tp), [None] * tp

        def run(place: int) -> None:
            one = self.stages[stage * tp + place]
            results[place] = one.run(tile, joint.of(place), state, logits=logits)

        made = self.world.thread if self.world else _thread
        threads = [made(run, place) for place in range(1, tp)]
        for thread in threads:
            thread.start()
        run(0)
        for thread in threads:
            thread.join(60)
        assert results[0] is not None
        return results[0]

    def generate(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        request: str = "r",
        first_block: int = 1,
        chunk: int = 1000,
        **how: Any,
    ) -> list[int]:
        """One request alone, its prompt in pieces of `chunk` tokens."""
        sampling, known, at, out = Sampling(max_tokens=count, **how), list(prompt), 0, []
        while len(out) < count:
            end = min(at + chunk, len(known))
            blocks = tuple(range(first_block, first_block + -(-end // BLOCK)))
            last = end == len(known)
            piece = Piece(
                request=request,
                start=at,
                tokens=tuple(known[at:end]),
                blocks=blocks,
                sampling=sampling if last else None,
            )
            drawn = self.step([piece])
            at = end
            if last:
                known.append(drawn[request])
                out.append(drawn[request])
        return out
