"""Pieces of the reference model that are recorded once and replayed: the tokens of a model that is called, and few recordings.

The recorder here stands for CUDA's: what it records is run again on the same addresses, and its first run counts for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference.pieces import Pieces, Replay, pieces_for  # noqa: E402
from dynamo_gpu_ft.engines.reference.sampling import Sampling  # noqa: E402
from dynamo_gpu_ft.engines.reference.tiles import Piece  # noqa: E402
from tests.engines.reference_world import BLOCK, ThreadEngine, tiny_mixtral  # noqa: E402

PROMPT = [(7 * n) % 900 + 3 for n in range(3 * BLOCK + 5)]


class Recorder:
    """`Capture` on a CPU. Its results are not numbers until they are replayed, and stay where they are."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, piece: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        self.recorded += 1
        out = torch.full_like(piece(), torch.nan)

        def replay() -> None:
            out.copy_(piece())

        return replay, out


@pytest.fixture(params=["llama", "mixtral"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_llama() if request.param == "llama" else tiny_mixtral(tmp_path)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
def test_replayed_pieces_give_the_bits_of_called_ones(model: Path, tp: int, pp: int) -> None:
    called = ThreadEngine(model, tp, pp)
    replayed = ThreadEngine(model, tp, pp, capture=Recorder())
    assert replayed.generate(PROMPT, 24) == called.generate(PROMPT, 24)
    for ours, theirs in zip(replayed.caches, called.caches, strict=True):
        assert torch.equal(ours[:, 1:], theirs[:, 1:])  # block 0 is nobody's


def test_recordings_are_as_many_as_layers_and_widths_and_serve_every_request() -> None:
    recorder = Recorder()
    engine = ThreadEngine(tiny_llama(), capture=recorder)
    first = engine.generate(PROMPT, 20)
    widths = 4  # of tables: 1, 2, 4 and 8 blocks; 3 and 5 are filled up
    layers = engine.shape.layers
    assert recorder.recorded == engine.pieces[0].captured == layers * (widths + 1)
    assert engine.generate(PROMPT, 20, request="again", first_block=20) == first
    assert recorder.recorded == layers * (widths + 1)


def test_rows_of_another_request_in_the_tile_change_no_bit() -> None:
    alone = ThreadEngine(tiny_llama(), capture=Recorder())
    wanted = alone.generate(PROMPT, 1)
    beside = ThreadEngine(tiny_llama(), capture=Recorder())
    whole = tuple(range(1, 5))
    beside.step(
        [Piece(request="r", start=0, tokens=tuple(PROMPT[:-1]), blocks=whole, sampling=None)]
    )
    drawn = beside.step(
        [
            Piece(request="r", start=len(PROMPT) - 1, tokens=(PROMPT[-1],), blocks=whole, sampling=Sampling(max_tokens=1)),
            Piece(request="s", start=0, tokens=(5, 6, 7), blocks=(9,), sampling=Sampling(max_tokens=1)),
        ]
    )  # fmt: skip
    assert [drawn["r"]] == wanted


def test_what_cannot_be_recorded_is_called_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(piece: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = ThreadEngine(tiny_llama(), capture=refuses)
    with caplog.at_level(logging.WARNING):
        assert engine.generate(PROMPT, 4) == ThreadEngine(tiny_llama()).generate(PROMPT, 4)
    assert [record.message for record in caplog.records] == [
        "this engine's steps run without CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_a_replay_reads_weights_where_they_are() -> None:
    weight = torch.ones(2)
    pieces = Pieces(Recorder())
    assert pieces.run("scaled", lambda x: x * weight, torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    weight.fill_(3.0)
    assert pieces.run("scaled", lambda x: x * 0, torch.tensor([1.0, 2.0])).tolist() == [3, 6]


def test_only_a_cuda_device_s_pieces_are_recorded() -> None:
    pieces = pieces_for(torch.device("cpu"), wanted=True)
    assert pieces.run("twice", lambda x: x * 2, torch.ones(1)).tolist() == [2]
    assert pieces.captured == 0
