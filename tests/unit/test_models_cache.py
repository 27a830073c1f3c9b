"""The model cache: what becomes visible, when a model is made again, and what a killed or failing maker leaves."""

import multiprocessing
import signal
from pathlib import Path

import pytest

from dynamo_gpu_ft.cli.models.cache import MANIFEST, cached, damage
from dynamo_gpu_ft.errors import GpuFtError


def write_two_files(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(b"abc" * 1000)
    log = folder.parent.parent / "made.log"
    with log.open("a") as file:
        file.write("made\n")


def times_made(cache: Path) -> int:
    log = cache / "made.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_whole_model_is_made_once_and_then_found(tmp_path: Path) -> None:
    first = cached("m", "recipe 1", write_two_files, tmp_path)
    second = cached("m", "recipe 1", write_two_files, tmp_path)
    assert first == second == tmp_path / "models" / "m"
    assert times_made(tmp_path) == 1


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "manifest", "no manifest"])
def test_a_damaged_model_is_made_again(tmp_path: Path, harm: str) -> None:
    folder = cached("m", "recipe 1", write_two_files, tmp_path)
    weights = folder / "weights"
    if harm == "flip":
        weights.write_bytes(b"abd" + weights.read_bytes()[3:])
    elif harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif harm == "delete":
        weights.unlink()
    elif harm == "manifest":
        (folder / MANIFEST).write_text('{"recipe": 3')
    else:
        (folder / MANIFEST).unlink()
    assert damage(folder, "recipe 1") is not None
    again = cached("m", "recipe 1", write_two_files, tmp_path)
    assert damage(again, "recipe 1") is None
    assert weights.read_bytes() == b"abc" * 1000
    assert times_made(tmp_path) == 2


def test_another_recipe_makes_it_again(tmp_path: Path) -> None:
    cached("m", "recipe 1", write_two_files, tmp_path)
    cached("m", "recipe 2", write_two_files, tmp_path)
    assert times_made(tmp_path) == 2


def test_a_failing_maker_leaves_nothing_visible_and_no_rubbish(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_two_files(folder)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        cached("m", "recipe 1", fail, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".m.lock"]


def test_a_failing_maker_keeps_the_damaged_model_rather_than_nothing(tmp_path: Path) -> None:
    folder = cached("m", "recipe 1", write_two_files, tmp_path)

    def fail(folder: Path) -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        cached("m", "recipe 2", fail, tmp_path)
    assert damage(folder, "recipe 1") is None


def _make(cache: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    start.wait(timeout=30)
    cached("m", "recipe 1", write_two_files, cache)


def test_processes_that_start_together_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    makers = [context.Process(target=_make, args=(tmp_path, start)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(timeout=60)
    assert [maker.exitcode for maker in makers] == [0] * 4
    assert times_made(tmp_path) == 1


def _make_and_hang(cache: Path, entered: "multiprocessing.synchronize.Event") -> None:
    def make(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        entered.set()
        signal.pause()

    cached("m", "recipe 1", make, cache)


def test_a_killed_maker_blocks_nobody_and_its_half_is_swept(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    entered = context.Event()
    maker = context.Process(target=_make_and_hang, args=(tmp_path, entered))
    maker.start()
    assert entered.wait(timeout=60)
    maker.kill()
    maker.join(timeout=60)
    folder = cached("m", "recipe 1", write_two_files, tmp_path)
    assert damage(folder, "recipe 1") is None
    assert sorted(path.name for path in folder.parent.iterdir()) == [".m.lock", "m"]


def test_an_unusable_cache_directory_is_named_with_a_remedy(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(GpuFtError, match="DYN_GPU_FT_CACHE"):
        cached("m", "recipe 1", write_two_files, in_the_way)
