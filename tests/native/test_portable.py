"""Export and import: prefixes travel whole, with their chain, and a changed file is refused with the name of the tensor."""

from __future__ import annotations

import builtins
import ctypes
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converter_world import BLOCKS, SOURCE, World
from door import core
from portable_world import RECORD, sealed, two_shards

from dynamo_gpu_ft.kv import portable
from dynamo_gpu_ft.kv.geometry import LayerRun, Opaque, Part, ShardLayout

safetensors = pytest.importorskip("safetensors")


@pytest.fixture
def world(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> World:
    return two_shards(make_arena, make_writer, rng)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_BYTES", "8MiB")
    monkeypatch.setenv("DYN_GPU_FT_LEDGER_BYTES", "1MiB")


@pytest.mark.usefixtures("small")
def test_a_prefix_travels_whole_and_is_the_same_prefix_afterwards(
    world: World, folder: Path, answer: Any
) -> None:
    status, said, _ = answer(
        "export", world.arena.path, "--namespace", 1, "--all", "--to", folder / "out"
    )
    assert (status, said["blocks"], said["left_out"]) == (0, 2 * BLOCKS, 0)
    status, said, _ = answer("import", folder / "out", "--arena", folder / "new.arena")
    assert (status, said["verified"], said["sealed"], said["refused"]) == (0, 16, 16, {})
    there, here = sealed(world.arena.path), sealed(folder / "new.arena")
    assert here == {link: there[link] for link in here}
    opened = core.Arena.open(str(folder / "new.arena"))
    usable = opened.usable_prefix(
        namespace=0, shards=[0, 1], block_hashes=world.names, max_epoch=opened.epoch
    )
    assert (usable.blocks, opened.counts()["held"]) == (BLOCKS, 0)
    assert opened.namespaces() == [RECORD]
    status, said, _ = answer("import", folder / "out", "--arena", folder / "new.arena")
    assert (status, said["sealed"], said["present"]) == (0, 0, 16)
    assert sealed(folder / "new.arena") == here


def test_a_person_can_load_the_tensors_in_their_shape(
    world: World, folder: Path, answer: Any
) -> None:
    loader = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    answer(
        "export",
        world.arena.path,
        "--namespace",
        1,
        "--hash",
        world.names[2].hex(),
        "--to",
        folder / "out",
    )
    tensors = loader.load_file(str(folder / "out" / "kv-00000.safetensors"))
    assert len(tensors) == 2 * 3  # both shards, with the two blocks before it
    for tensor in tensors.values():
        assert tensor.shape == (
            3,
            1,
            16,
            2,
            2,
            8,
        )  # layers, kernel blocks, tokens, heads, k and v, elements
        assert tensor.dtype == torch.bfloat16


def test_chosen_blocks_come_with_the_whole_prefix_before_them(
    world: World, folder: Path, answer: Any
) -> None:
    for number, (how, blocks) in enumerate(
        [
            (["--hash", world.names[3].hex()], 2 * 4),
            (["--hash", world.names[0].hex(), "--hash", world.names[1].hex()], 2 * 2),
            (["--held"], 2 * BLOCKS),
        ]
    ):
        out = folder / f"out{number}"
        status, said, _ = answer("export", world.arena.path, "--namespace", 1, *how, "--to", out)
        assert (status, said["blocks"]) == (0, blocks)
    status, said, _ = answer(
        "export", world.arena.path, "--hash", "ffffff", "--to", folder / "none"
    )
    assert (status, said["blocks"], said["left_out"]) == (1, 0, 1)


def test_a_damaged_block_and_all_behind_it_are_left_out_and_counted(
    world: World, folder: Path, answer: Any
) -> None:
    found = world.writers[0].find(block_hash=world.names[5], parent_hash=world.names[4])
    byte = ctypes.c_char.from_address(found.address + 7)
    byte.value = bytes([byte.value[0] ^ 0x40])
    status, said, err = answer(
        "export", world.arena.path, "--namespace", 1, "--all", "--to", folder / "out"
    )
    assert (status, said["blocks"], said["left_out"]) == (1, 2 * BLOCKS - 3, 3)
    assert "left out" in err or said["left_out"]


def refused(answer: Any, out: Path, new: Path) -> str:
    """Imports what must be refused; nothing may have been made or sealed. What was said about it."""
    status, said, err = answer("import", out, "--arena", new)
    assert (status, said) == (2, None)
    assert not new.exists()
    return str(err)


@pytest.mark.usefixtures("small")
def test_one_changed_bit_anywhere_in_the_files_is_refused(
    world: World, folder: Path, answer: Any, rng: random.Random
) -> None:
    out = folder / "out"
    answer("export", world.arena.path, "--namespace", 1, "--all", "--to", out)
    manifest = json.loads((out / portable.MANIFEST).read_text())
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    (data,) = [n for n in whole if n.endswith(".safetensors")]
    header = int.from_bytes(whole[data][:8], "little") + 8
    names = [b["tensor"] for b in manifest["namespaces"][0]["blocks"]]
    for at in [
        header,
        len(whole[data]) - 1,
        *(rng.randrange(header, len(whole[data])) for _ in range(6)),
    ]:
        changed = bytearray(whole[data])
        changed[at] ^= 1 << rng.randrange(8)
        (out / data).write_bytes(changed)
        said = refused(answer, out, folder / "new.arena")
        assert any(tensor in said for tensor in names), said
    for at in range(0, header, max(1, header // 25)):
        changed = bytearray(whole[data])
        changed[at] ^= 1 << rng.randrange(7)
        (out / data).write_bytes(changed)
        status, _, err = answer("import", out, "--check")
        assert status in (0, 2), err  # a changed word about format or shape changes no bytes
    (out / data).write_bytes(whole[data])
    for field in (
        "hash",
        "shard",
        "position",
        "epoch",
        "parent_link",
        "link",
        "digest",
        "tensor",
        "file",
    ):
        lie = json.loads(whole[portable.MANIFEST])
        block = rng.choice(lie["namespaces"][0]["blocks"])
        value = block[field]
        block[field] = (
            value + 1
            if isinstance(value, int)
            else "0" + value[1:]
            if value[0] != "0"
            else "1" + value[1:]
        )
        (out / portable.MANIFEST).write_text(json.dumps(lie))
        assert "refused" in refused(answer, out, folder / "new.arena") or field == "file"


@pytest.mark.usefixtures("small")
def test_lying_manifests_are_refused_as_a_whole(world: World, folder: Path, answer: Any) -> None:
    out = folder / "out"
    answer("export", world.arena.path, "--namespace", 1, "--all", "--to", out)
    good = json.loads((out / portable.MANIFEST).read_text())

    def lied(change: Callable[[Any], None]) -> str:
        lie = json.loads(json.dumps(good))
        change(lie)
        (out / portable.MANIFEST).write_text(json.dumps(lie))
        return refused(answer, out, folder / "new.arena")

    blocks: Callable[[Any], list[Any]] = lambda m: m["namespaces"][0]["blocks"]  # noqa: E731
    assert "continues" in lied(lambda m: blocks(m).pop(2))
    assert "continues" in lied(lambda m: blocks(m).reverse())
    assert "link" in lied(
        lambda m: m["namespaces"][0].update(record=RECORD.replace(b"16", b"32").hex())
    )
    assert "beside" in lied(lambda m: blocks(m)[0].update(file="../x"))
    assert "format" in lied(lambda m: m.update(format="other"))
    assert "version" in lied(lambda m: m.update(version=2))
    assert "digests of this build" in lied(lambda m: m.update(digest="md5"))
    assert "refused" in lied(lambda m: m.update(payload_bytes=SOURCE.payload_bytes + 1))
    assert "manifest" in lied(lambda m: m.update(more=1))
    assert "identity" in lied(lambda m: blocks(m)[0].update(shard=-1))
    assert "hexadecimal" in lied(lambda m: blocks(m)[0].update(link="zz"))
    (out / portable.MANIFEST).write_text("[" * 100_000)
    assert "manifest" in refused(answer, out, folder / "new.arena")
    (out / portable.MANIFEST).unlink()
    assert "export finished" in refused(answer, out, folder / "new.arena")


@pytest.mark.usefixtures("small")
def test_an_import_into_an_arena_that_does_not_fit_says_so(
    world: World, folder: Path, answer: Any, make_arena: Any, make_writer: Any
) -> None:
    out = folder / "out"
    answer("export", world.arena.path, "--namespace", 1, "--all", "--to", out)
    few = make_arena(slots=5, slot_bytes=SOURCE.payload_bytes)
    status, _, err = answer("import", out, "--arena", few.path)
    assert (status, "16 slots" in err) == (2, True)
    other = make_arena(slots=64)
    status, _, err = answer("import", out, "--arena", other.path)
    assert (status, "another model or block size" in err) == (2, True)
    live = make_arena(slots=64, slot_bytes=SOURCE.payload_bytes)
    writer = make_writer(live, 0, b"someone")
    status, _, err = answer("import", out, "--arena", live.path)
    assert (status, "busy" in err) == (2, True)
    assert live.counts()["sealed"] == 0
    writer.close()


@pytest.mark.usefixtures("small")
def test_a_prefix_that_an_arena_has_under_other_links_is_not_mixed_with_the_imported_one(
    world: World, folder: Path, answer: Any, make_arena: Any, make_writer: Any
) -> None:
    out = folder / "out"
    answer("export", world.arena.path, "--namespace", 1, "--all", "--to", out)
    mine = make_arena(slots=64, slot_bytes=SOURCE.payload_bytes)
    writer = make_writer(mine, 0, RECORD)
    claim = writer.claim(block_hash=world.names[0], parent_hash=None, position=0)
    ctypes.memset(claim.address, 1, SOURCE.payload_bytes)
    claim.seal()
    del claim  # it keeps the shard's lane
    writer.close()
    status, said, err = answer("import", out, "--arena", mine.path)
    assert status == 1, err
    assert (
        sum(said["refused"].values()) == BLOCKS - 1
    )  # what would have continued the other first block
    assert said["sealed"] == BLOCKS  # the other shard
    sealed(mine.path)


def test_commands_that_cannot_run_say_what_to_do(
    world: World, folder: Path, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = world.arena.path
    status, _, err = answer("export", arena, "--to", folder / "out")
    assert (status, "--all" in err) == (2, True)
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    status, _, err = answer("export", arena, "--all", "--to", folder / "full")
    assert (status, "not empty" in err) == (2, True)
    status, _, err = answer("export", folder / "no.arena", "--all", "--to", folder / "out")
    assert (status, "no.arena" in err) == (2, True)
    status, _, err = answer("export", arena, "--request", "nobody", "--to", folder / "out")
    assert (status, "nobody" in err) == (2, True)
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "safetensors":
            raise ImportError("no module named safetensors")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for command in (["export", arena, "--all", "--to", folder / "out"], ["import", folder / "out"]):
        status, _, err = answer(*command)
        assert (status, "dynamo-gpu-ft[portable]" in err) == (2, True)


def test_shapes_follow_the_layout_as_far_as_k_and_v_share_it() -> None:
    def shape(*parts: Part, **how: Any) -> Any:
        layout = ShardLayout(
            **{
                "block_tokens": 32,
                "piece_tokens": 16,
                "heads": 4,
                "tp": 2,
                "dtype": "torch.bfloat16",
                "itemsize": 2,
                "parts": parts,
                "layers": (LayerRun("l{}", 0, 3),),
                **how,
            }
        )
        return portable.shape_of(layout, layout.payload_bytes)

    def both(order: str, other: str = "", width: int = 8) -> tuple[Part, Part]:
        return Part("k", 8, order), Part("v", width, other or order)

    assert shape(*both("PNHSD")) == ("bfloat16", (3, 2, 16, 2, 2, 8))
    assert shape(*both("SPHND")) == ("bfloat16", (3, 2, 2, 2, 16, 8))
    assert shape(*both("PHSDN", "PHSND")) == ("bfloat16", (3, 2, 2, 2, 128))
    assert shape(*both("PHNSD", width=4)) == ("bfloat16", (3, 2, 2, 16, 12))
    assert shape(Part("latent", 9, "PNHD"), heads=1) == ("bfloat16", (3, 2, 16, 1, 9))
    assert shape(Part("cell", 16, "PHX"), cell="k") == ("bfloat16", (3, 2, 2, 256))
    assert shape(*both("PNHSD"), dtype="torch.strange") == ("uint8", (3, 2, 16, 2, 2, 8, 2))
    assert portable.shape_of(Opaque("?"), 100) == ("uint8", (100,))


def test_blocks_whose_prefix_is_gone_are_not_exported(world: World) -> None:
    identities = {s.slot: core.read_block(world.arena, s.slot) for s in world.arena.scan()}
    roots = {core.digest(r): r for r in world.arena.namespaces()}
    everything = portable.choose(identities, list(identities), roots)
    assert (len(everything.blocks), everything.unreachable) == (len(identities), 0)
    gone = next(n for n, i in identities.items() if (i.shard, i.position) == (1, 2))
    namespace_id = identities.pop(gone).namespace_id
    left = portable.choose(identities, list(identities), roots)
    assert left.unreachable == BLOCKS - 3
    assert all(
        identities[n].position < 2
        or identities[n].shard == 0
        or identities[n].namespace_id != namespace_id
        for n in left.blocks
    )
    assert portable.choose(identities, list(identities), {}).blocks == []


def test_reading_a_slot_by_number_tells_what_is_wrong_with_it(world: World) -> None:
    free = min(set(range(world.arena.slots)) - {s.slot for s in world.arena.scan()})
    with pytest.raises(core.CoreError) as caught:
        core.read_block(world.arena, free)
    assert caught.value.code == "not_found"
    with pytest.raises(core.CoreError, match="a payload has"):
        core.read_block(world.arena, 0, bytearray(3))
    with pytest.raises(core.CoreError):
        core.read_block(world.arena, 1 << 40)
    for slot in world.arena.scan():
        assert core.read_block(world.arena, slot.slot).block_hash == slot.block_hash
