"""The former arena: set aside once, fenced, read back, removed; and the ledger that follows its engine to the new file."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ArenaError
from dynamo_gpu_ft.kv import arena, former
from dynamo_gpu_ft.recovery.ledger import LedgerWriter, replay

SMALL, LARGE = 4096, 8192


def config(folder: Path) -> Config:
    return Config(arena_dir=str(folder), arena_bytes=1 << 20, ledger_bytes=1 << 16)


def path_in(folder: Path) -> Path:
    return Path(config(folder).arena_path)


def opened(folder: Path, slot_bytes: int, engine: str) -> Any:
    return former.open_for_engine(
        path_in(folder), slot_bytes=slot_bytes, engine_id=engine, config=config(folder)
    )


def test_an_arena_of_the_same_geometry_is_simply_opened(memory_folder: Path) -> None:
    first = opened(memory_folder, SMALL, "a")
    first.add_namespace(b"kept")
    first.close()
    assert opened(memory_folder, SMALL, "b").namespaces() == [b"kept"]
    assert former.open_former(path_in(memory_folder)) is None
    assert [p.name for p in memory_folder.iterdir()] == [path_in(memory_folder).name]


def test_another_geometry_sets_the_old_arena_aside_with_everything_in_it(
    memory_folder: Path,
) -> None:
    old = opened(memory_folder, SMALL, "a")
    old.add_namespace(b"kept")
    old.close()
    new = opened(memory_folder, LARGE, "b")
    assert new.slot_bytes == LARGE
    aside = former.open_former(path_in(memory_folder))
    assert aside is not None
    assert (aside.slot_bytes, aside.namespaces()) == (SMALL, [b"kept"])
    former.remove(path_in(memory_folder))
    assert former.open_former(path_in(memory_folder)) is None


def test_a_third_geometry_replaces_the_former_arena(memory_folder: Path) -> None:
    for size in (SMALL, LARGE, 4 * SMALL):
        opened(memory_folder, size, f"engine {size}").close()
    aside = former.open_former(path_in(memory_folder))
    assert aside is not None
    assert aside.slot_bytes == LARGE


def test_the_arena_of_a_live_engine_is_never_set_aside(memory_folder: Path) -> None:
    old = opened(memory_folder, SMALL, "a")
    arena.begin_epoch(old, "a", takeover=False)
    writer = arena.attach_writer(old, shard=0, engine_id="a", record=b"n", takeover=False)
    with pytest.raises(ArenaError) as refused:
        opened(memory_folder, LARGE, "b")
    assert refused.value.rule == "busy"
    assert path_in(memory_folder).exists()
    writer.close()
    assert opened(memory_folder, LARGE, "b").slot_bytes == LARGE


def test_a_damaged_former_arena_is_passed_over(memory_folder: Path) -> None:
    former.path_of(path_in(memory_folder)).write_bytes(b"no arena at all")
    assert former.open_former(path_in(memory_folder)) is None


def _open_in_a_process(folder: str, engine: str, answers: Any) -> None:
    try:
        answers.put(opened(Path(folder), LARGE, engine).slot_bytes)
    except ArenaError as error:
        answers.put(str(error))


def test_ranks_that_race_for_the_new_geometry_end_up_in_one_arena(memory_folder: Path) -> None:
    old = opened(memory_folder, SMALL, "a")
    old.add_namespace(b"kept")
    old.close()
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [
        context.Process(target=_open_in_a_process, args=(str(memory_folder), "b", answers))
        for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    assert [answers.get(timeout=60) for _ in ranks] == [LARGE] * 4
    for rank in ranks:
        rank.join(60)
    aside = former.open_former(path_in(memory_folder))
    assert aside is not None
    assert aside.namespaces() == [b"kept"], "the new arena was never taken for the old one"
    assert len(list(memory_folder.iterdir())) == 2


def test_the_ledger_moves_with_every_open_request_and_goes_on(memory_folder: Path) -> None:
    old = opened(memory_folder, SMALL, "a")
    ledger = LedgerWriter(old)
    ledger.admitted("open", [1, 2, 3], {}, "")
    ledger.tokens("open", [4, 5])
    ledger.admitted("done", [9], {}, "")
    ledger.finished("done", "stop")
    new = opened(memory_folder, LARGE, "b")
    moved = ledger.move_to(new)
    moved.tokens("open", [6])
    (request,) = replay(new)
    assert (request.request_id, request.token_ids) == ("open", [4, 5, 6])
    ledger.tokens("open", [7])
    assert replay(new)[0].token_ids == [4, 5, 6], "the old writer is over"


def test_no_room_beside_the_former_arena_costs_the_former_and_not_the_new_one(
    memory_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(memory_folder, SMALL, "a").close()
    real, calls = arena.open_or_create, []

    def crowded(path: Path, **arguments: Any) -> Any:
        calls.append(os.path.exists(former.path_of(path)))
        if calls[-1]:
            raise ArenaError("full", rule="no_space")
        return real(path, **arguments)

    monkeypatch.setattr(arena, "open_or_create", crowded)
    assert opened(memory_folder, LARGE, "b").slot_bytes == LARGE
    assert calls == [False, True, False]
