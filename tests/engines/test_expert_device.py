"""Expert-parallel ranks on devices, simulated ones: the bits of the host, nothing mixed up, and few waits for the device in a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.engines.expert_threads import ThreadRanks  # noqa: E402
from tests.engines.expert_world import Oracle, prompts  # noqa: E402
from tests.engines.reference_world import tiny_mixtral  # noqa: E402
from tests.engines.simulated_device import SimulatedDevice  # noqa: E402

EXPERTS, LAYERS, RANKS, TOKENS = 8, 2, 3, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixtral(tmp_path_factory.mktemp("device"), experts=EXPERTS, layers=LAYERS)


@pytest.fixture(scope="module")
def oracle(model: Path) -> Oracle:
    return Oracle(model)


@pytest.fixture
def world() -> SimulatedDevice:
    return SimulatedDevice()


@pytest.fixture
def on_device(request: pytest.FixtureRequest) -> bool:
    """Whether rows go to the communicator from where they lie, as NCCL wants them, or through host memory, as gloo does."""
    return bool(getattr(request, "param", True))


both = pytest.mark.parametrize("on_device", [True, False], ids=["device", "host"], indirect=True)


@pytest.fixture
def ranks(
    model: Path, memory_folder: Path, monkeypatch: pytest.MonkeyPatch, world: SimulatedDevice, on_device: bool
) -> Iterator[ThreadRanks]:  # fmt: skip
    """Two copies of every expert."""
    with ThreadRanks(
        model, memory_folder, monkeypatch, count=RANKS, slots=6, world=world, on_device=on_device
    ) as made:
        yield made


def to_the_end(ranks: ThreadRanks, oracle: Oracle, count: int = 4) -> None:
    while ranks.traffic.busy:
        ranks.step()
    expected = [oracle.tokens(prompt, TOKENS) for prompt in prompts(1)[:count]]
    assert list(ranks.tokens.values()) == expected


@both
def test_tokens_and_the_canary_have_the_bits_of_ranks_on_the_host_and_a_loss_changes_none(
    ranks: ThreadRanks, oracle: Oracle, on_device: bool, world: SimulatedDevice, model: Path,
    memory_folder: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ranks.ask(prompts(1)[:4], TOKENS)
    ranks.step(canary=True)
    for _ in range(4):
        ranks.step()
    ranks.lose(1)
    ranks.step(canary=True)
    to_the_end(ranks, oracle)
    assert ranks.backend.seen == {world.device.type if on_device else "cpu"}
    with ThreadRanks(model, memory_folder, monkeypatch, count=RANKS, slots=6, world=None) as host:
        host.step(canary=True)
        assert {song.logits for song in ranks.songs} == {song.logits for song in host.songs}


def test_everything_lies_on_the_ranks_own_device_and_no_peer_is_told_an_address(
    ranks: ThreadRanks, world: SimulatedDevice
) -> None:
    for shard, rank in ranks.ranks.items():
        here, tables = rank._here, rank._ways.tables
        own = [here.cache, *here.weights.tensors.values(), *here.memory.tensors(0, 0)]
        own += [tables.logical, tables.counts, tables.index]
        assert {tensor.device for tensor in own} == {torch.device(world.device.type, shard)}
    assert ranks.tables == [None] * RANKS


def test_an_expert_is_refilled_into_the_device_and_damage_there_is_found_and_mended(
    ranks: ThreadRanks, oracle: Oracle
) -> None:
    ranks.ask(prompts(1)[:4], TOKENS)
    for _ in range(3):
        ranks.step()
    expert = ranks.map.row_of(0, 1)[2]
    ranks.ranks[0]._here.spoil(1, 2, landed=False)
    answers = ranks.step(scrub=-1)
    assert answers[0].damaged == ((1, 2),)
    assert not answers[1].damaged
    ranks.map.table[1][2] = -1
    landed = ranks.brings(0, 1, 2, expert)
    assert landed.source == "neighbour", "the host copy"
    assert ranks.map.row_of(0, 1)[2] == expert
    assert not ranks.step(scrub=-1)[0].damaged
    to_the_end(ranks, oracle)


def test_what_landed_and_was_damaged_on_the_device_is_not_committed(ranks: ThreadRanks) -> None:
    before = list(ranks.map.row_of(0, 0))
    other = next(e for e in range(EXPERTS) if e not in before)
    ranks.ranks[0]._here.spoil(0, 3, landed=True)
    ranks.brings(0, 0, 3, other)
    assert ranks.map.row_of(0, 0) == before
    ranks.brings(0, 0, 3, other)
    assert ranks.map.row_of(0, 0)[3] == other


@both
def test_a_step_waits_a_few_times_per_layer_for_the_device_and_copies_no_weights(
    ranks: ThreadRanks, world: SimulatedDevice, on_device: bool
) -> None:
    ranks.ask(prompts(1)[:3], TOKENS)
    ranks.step()
    world.transfers.reset()
    ranks.step()
    room = ranks.options.tile * ranks.shape.chosen * RANKS
    row = (ranks.shape.hidden + 2) * 4
    # Of each layer: what the router said, and who asks whom, or, where rows go through the host, those that leave for both ways. Five are of
    # the router's twin, which a kernel does not have. And the token.
    waits = LAYERS * (5 + (2 if on_device else 3)) + 1
    assert world.transfers.to_host <= RANKS * waits
    assert world.transfers.to_host_bytes <= RANKS * LAYERS * (2 * room * row + 4096) + 4096
    assert world.transfers.to_device_bytes <= RANKS * LAYERS * (2 * room * row + 4096) + 4096
