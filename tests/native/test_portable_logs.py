"""`import --disk` and `export --disk`: prefixes travel into the logs of their shards and out of them, verified at every door."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converter_world import BLOCKS, SOURCE, World
from door import core
from portable_world import RECORD, sealed, two_shards

from dynamo_gpu_ft.cli import import_logs
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.kv import disk, portable

safetensors = pytest.importorskip("safetensors")
SIZE = SOURCE.payload_bytes


@pytest.fixture
def world(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> World:
    return two_shards(make_arena, make_writer, rng)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_BYTES", "8MiB")
    monkeypatch.setenv("DYN_GPU_FT_LEDGER_BYTES", "1MiB")
    monkeypatch.setenv("DYN_GPU_FT_DISK_BYTES", "16MiB")
    monkeypatch.setenv("DYN_GPU_FT_DISK_SEGMENT_BYTES", "1MiB")


@pytest.fixture
def out(world: World, folder: Path, answer: Any) -> Path:
    """What `export` made of the arena's namespace 1."""
    made = folder / "out"
    assert answer("export", world.arena.path, "--namespace", 1, "--all", "--to", made)[0] == 0
    return made


def stored(folder: Path, arena: str = "default") -> dict[bytes, bytes]:
    """{link: payload} of every block in the logs, each verified by the log."""
    config = Config.load({"disk_dir": str(folder), "arena_name": arena})
    found = {}
    for shard in disk.shards_on_disk(config):
        log = disk.open_reader(config, shard)
        assert log is not None
        for entry in log.entries():
            assert entry.key.shard == shard
            found[entry.key.link] = log.read(entry)
        log.close()
    return found


def test_prefixes_go_round_by_way_of_logs_and_are_the_same_prefixes(
    world: World, folder: Path, out: Path, answer: Any
) -> None:
    """Arena to files to logs to files to other logs and to a new arena: links, bytes and manifest stay."""
    status, said, _ = answer("import", out, "--disk", folder / "kv")
    assert (status, said["stored"], said["present"]) == (0, 16, 0)
    assert said["shards"] == [0, 1]
    there = sealed(world.arena.path)
    first = stored(folder / "kv")
    assert len(first) == 2 * BLOCKS
    assert first == {link: there[link] for link in first}
    status, said, _ = answer("import", out, "--disk", folder / "kv")
    assert (status, said["stored"], said["present"]) == (0, 0, 16)

    status, said, _ = answer("export", "--disk", folder / "kv", "--all", "--to", folder / "again")
    assert (status, said["blocks"], said["left_out"]) == (0, 2 * BLOCKS, 0)
    one, two = (json.loads((f / portable.MANIFEST).read_text()) for f in (out, folder / "again"))
    assert one == two
    status, said, _ = answer(
        "import", folder / "again", "--disk", folder / "other", "--arena", "named"
    )
    assert (status, said["stored"]) == (0, 16)
    assert stored(folder / "other", "named") == first
    status, said, _ = answer("import", folder / "again", "--arena", folder / "new.arena")
    assert (status, said["sealed"]) == (0, 16)
    assert sealed(folder / "new.arena") == first


def test_imported_blocks_are_restored_as_any_block_of_the_log(
    make_arena: Callable[..., Any], world: World, folder: Path, out: Path, answer: Any
) -> None:
    """A new arena behind an imported log, its epoch above the blocks': they are fetched and verified."""
    assert answer("import", out, "--disk", folder / "kv")[0] == 0
    config = Config.load({"disk_dir": str(folder / "kv")})
    arena, token = make_arena(slots=32, slot_bytes=SIZE), b"%016d" % 8
    arena.begin_epoch(token, floor=disk.epoch_floor(config, [0, 1]))
    writer = arena.attach_writer(shard=1, token=token, namespace=arena.add_namespace(RECORD))
    filler = disk.open_backing(config, 1, arena, writer, RECORD)
    assert filler is not None
    names = [(n, world.names[i - 1] if i else None, i) for i, n in enumerate(world.names)]
    filler._backing.fetch(1, names, 20.0)
    assert filler.wait(20)
    (found,) = filler.poll()
    assert found.statuses == ("ok",) * BLOCKS
    assert set(sealed(arena.path).items()) <= set(sealed(world.arena.path).items())
    filler.close(5)
    filler.close_log()


def test_chosen_prefixes_come_out_of_logs_and_requests_do_not(
    world: World, folder: Path, out: Path, answer: Any
) -> None:
    kv = folder / "kv"
    answer("import", out, "--disk", kv)
    status, said, _ = answer(
        "export", "--disk", kv, "--hash", world.names[3].hex(), "--to", folder / "some"
    )
    assert (status, said["blocks"]) == (0, 2 * 4)
    for how in (["--held"], ["--request", "r"]):
        status, _, err = answer("export", "--disk", kv, *how, "--to", folder / "none")
        assert (status, "know no requests" in err) == (2, True)
    status, _, err = answer("export", "nobody", "--disk", kv, "--all", "--to", folder / "none")
    assert (status, "no disk logs" in err) == (2, True)
    assert not (folder / "none").exists()


def test_a_damaged_record_and_all_behind_it_are_left_out(
    world: World, folder: Path, out: Path, answer: Any
) -> None:
    kv = folder / "kv"
    answer("import", out, "--disk", kv)
    config = Config.load({"disk_dir": str(kv)})
    log = disk.open_reader(config, 0)
    assert log is not None
    (entry,) = [e for e in log.entries() if e.key.position == 5]
    log.close()
    (segment,) = disk.folder(config, 0).glob("seg-*")
    data = bytearray(segment.read_bytes())
    data[entry.offset + 4096 + 9] ^= 4
    segment.write_bytes(data)
    status, said, err = answer("export", "--disk", kv, "--all", "--to", folder / "rest")
    assert (status, said["blocks"], said["left_out"]) == (1, 2 * BLOCKS - 3, 3)
    assert "left out" in err or said["left_out"]
    assert answer("import", folder / "rest", "--check")[0] == 0


def refused(answer: Any, out: Path, kv: Path) -> str:
    status, said, err = answer("import", out, "--disk", kv)
    assert (status, said) == (2, None), err
    assert not kv.exists(), "nothing may be made of what is refused"
    return str(err)


def test_hostile_folders_make_no_log(
    world: World, folder: Path, out: Path, answer: Any, rng: random.Random
) -> None:
    kv = folder / "kv"
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    (data,) = [n for n in whole if n.endswith(".safetensors")]
    header = int.from_bytes(whole[data][:8], "little") + 8
    for at in (
        header,
        len(whole[data]) - 1,
        *(rng.randrange(header, len(whole[data])) for _ in range(5)),
    ):
        changed = bytearray(whole[data])
        changed[at] ^= 1 << rng.randrange(8)
        (out / data).write_bytes(changed)
        assert "shard" in refused(answer, out, kv)
    (out / data).write_bytes(whole[data])
    good = json.loads(whole[portable.MANIFEST])

    def lied(change: Callable[[Any], None]) -> str:
        lie = json.loads(json.dumps(good))
        change(lie)
        (out / portable.MANIFEST).write_text(json.dumps(lie))
        return refused(answer, out, kv)

    blocks: Callable[[Any], list[Any]] = lambda m: m["namespaces"][0]["blocks"]  # noqa: E731
    assert "continues" in lied(lambda m: blocks(m).pop(2))
    assert "link" in lied(lambda m: blocks(m)[3].update(epoch=99))
    assert "refused" in lied(lambda m: m.update(payload_bytes=SIZE + 1))
    assert "manifest" in lied(lambda m: m.update(more=1))
    assert "beside" in lied(lambda m: blocks(m)[0].update(file="../x"))
    (out / portable.MANIFEST).unlink()
    assert "export finished" in refused(answer, out, kv)


def forged(out: Path, *, shard: int, record: bytes, payload: bytes) -> None:
    """A folder in which everything holds: only someone who computes digests and links can make it."""
    from dynamo_gpu_ft.cli import tensor_files

    space = core.digest(record)
    key = core.DiskKey.seal(
        namespace=space,
        shard=shard,
        position=0,
        epoch=1,
        block_hash=b"h",
        parent_link=space,
        payload=payload,
    )
    identity = core.Identity(
        namespace_id=space,
        shard=shard,
        position=0,
        epoch=1,
        payload_bytes=len(payload),
        block_hash=b"h",
        parent_link=space,
        link=key.link,
        digest=key.digest,
    )
    out.mkdir()
    block = portable.entry(identity, "kv-00000.safetensors")
    tensor_files.write(
        out / block.file, {block.tensor: bytearray(payload)}, "uint8", [len(payload)], {}
    )
    manifest = {
        "format": portable.FORMAT,
        "version": portable.VERSION,
        "digest": core.DIGEST,
        "payload_bytes": len(payload),
        "namespaces": [
            {
                "record": record.hex(),
                "shown": {},
                "blocks": [{f: getattr(block, f) for f in block.__struct_fields__}],
            }
        ],
    }
    (out / portable.MANIFEST).write_text(json.dumps(manifest))


def test_forged_sizes_shards_and_records_are_refused_before_anything_is_written(
    folder: Path, answer: Any
) -> None:
    kv = folder / "kv"
    cases = {
        "shard": {"shard": import_logs.MAX_SHARDS, "record": b"{}", "payload": b"x"},
        "record": {"shard": 0, "record": b"r" * 4097, "payload": b"x"},
        "disk_bytes": {"shard": 0, "record": b"{}", "payload": b"x" * (3 << 20)},
    }
    for word, how in cases.items():
        forged(folder / word, **how)
        assert word in refused(answer, folder / word, kv)
    forged(folder / "good", shard=3, record=b"{}", payload=b"x")
    assert answer("import", folder / "good", "--disk", kv)[1]["stored"] == 1


def test_more_than_a_log_can_keep_is_refused_and_a_live_one_is_not_written(
    world: World, folder: Path, out: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = folder / "kv"
    config = Config.load({"disk_dir": str(kv)})
    disk.folder(config, 1).parent.mkdir(parents=True)
    live = disk.open_writer(config, 1, SIZE, core.DIGEST)
    status, _, err = answer("import", out, "--disk", kv)
    assert (status, "busy" in err) == (2, True)
    assert live.entries() == []
    live.close()
    assert len(stored(kv)) == BLOCKS, "the other shard's are whole"
    assert answer("import", out, "--disk", kv)[1]["stored"] == BLOCKS
    monkeypatch.setattr(import_logs, "USABLE", 1e-3)
    status, _, err = answer("import", out, "--disk", folder / "tiny")
    assert (status, "DISK_BYTES" in err) == (2, True)
    assert not (folder / "tiny").exists()


def test_a_file_that_changes_after_it_was_verified_ends_the_import_and_nothing_wrong_is_stored(
    world: World, folder: Path, out: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynamo_gpu_ft.cli import import_kv

    (data,) = out.glob("*.safetensors")
    real = import_kv.verify

    at = 2

    def then_change(*arguments: Any) -> Any:
        found = real(*arguments)
        changed = bytearray(data.read_bytes())
        start = int.from_bytes(changed[:8], "little") + 8
        changed[start + at * SIZE + 5] ^= 1
        data.write_bytes(changed)
        return found

    monkeypatch.setattr(import_kv, "verify", then_change)
    status, said, err = answer("import", out, "--disk", folder / "kv")
    assert (status, said) == (2, None)
    assert "digest" in err
    there = sealed(world.arena.path)
    found = stored(folder / "kv")
    assert len(found) == at
    assert found.items() <= there.items()


def test_an_import_that_is_killed_leaves_whole_blocks_and_can_be_done_again(
    world: World, folder: Path, out: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off at each block in turn, as by a failing disk: what is there is right, and a prefix."""
    there = sealed(world.arena.path)
    for cut in range(0, 2 * BLOCKS, 3):
        count = [0]
        real = import_logs._key

        def failing(*arguments: Any, real: Any = real, count: Any = count, cut: int = cut) -> Any:
            count[0] += 1
            if count[0] > cut:
                raise OSError("the disk is gone")
            return real(*arguments)

        kv = folder / f"kv{cut}"
        with monkeypatch.context() as patched:
            patched.setattr(import_logs, "_key", failing)
            status, _, err = answer("import", out, "--disk", kv)
            assert (status, "the disk is gone" in err) == (2, True)
        found = stored(kv)
        assert len(found) == cut
        assert found.items() <= there.items()
        status, said, _ = answer("import", out, "--disk", kv)
        assert (status, said["stored"], said["present"]) == (0, 2 * BLOCKS - cut, cut)
