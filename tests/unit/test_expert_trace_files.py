"""Traces of a model with 512 experts in every format that is read, and files of every format that lie: refused with a way out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import planner, trace_files
from dynamo_gpu_ft.experts.base import Aim, Domains
from dynamo_gpu_ft.experts.traces import Loads, Recipe, loads

numpy = pytest.importorskip("numpy")
EXPERTS, LAYERS, TOP = 512, 3, 8


def _choices() -> Any:
    """Expert ids [tokens, layers, top_k] with the counts of a Zipf recipe, the last expert among them."""
    rows = loads(Recipe(layers=LAYERS, experts=EXPERTS, tokens=200 * TOP))
    flat = [numpy.repeat(numpy.arange(EXPERTS), row) for row in rows]
    ids = numpy.stack([each.reshape(TOP, 200).T for each in flat], axis=1)
    return numpy.ascontiguousarray(ids, dtype=numpy.int16)


def _counts(ids: Any) -> Loads:
    return [numpy.bincount(ids[:, x].ravel(), minlength=EXPERTS).tolist() for x in range(LAYERS)]


def _json(folder: Path, ids: Any) -> None:
    (folder / "loads.json").write_text(json.dumps({"loads": _counts(ids)}))


def _npy(folder: Path, ids: Any) -> None:
    # Two requests, of which the first need not have chosen the last expert.
    for name, part in (("a", ids[:120]), ("b", ids[120:])):
        numpy.save(folder / f"{name}.npy", part)


def _safetensors(folder: Path, ids: Any) -> None:
    save = pytest.importorskip("safetensors.numpy").save_file
    save({"routed_experts": ids}, folder / "routed.safetensors")


def _labels(folder: Path, ids: Any) -> None:
    save = pytest.importorskip("safetensors.numpy").save_file
    layer = numpy.tile(numpy.arange(LAYERS, dtype=numpy.int32), len(ids))
    save({"top_indices": ids.reshape(-1, TOP), "layer": layer}, folder / "part_0.safetensors")


def _pt(folder: Path, ids: Any) -> None:
    torch = pytest.importorskip("torch")
    passes = torch.tensor([_counts(ids[:50]), _counts(ids[50:])])
    torch.save({"rank": 0, "logical_count": passes}, folder / "recorder.pt")


def _parquet(folder: Path, ids: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for layer in range(LAYERS):
        kind = pyarrow.list_(pyarrow.int16(), TOP)
        column = pyarrow.array(list(ids[:, layer]), type=kind)
        table = pyarrow.table({"indices": column})
        parquet.write_table(table, folder / f"layer_{layer + 2:02}.parquet", row_group_size=64)


FORMATS: dict[str, Callable[[Path, Any], None]] = {
    "json": _json,
    "npy": _npy,
    "safetensors": _safetensors,
    "labels": _labels,
    "pt": _pt,
    "parquet": _parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_512_experts_are_read_from_every_format_and_planned_for(name: str, tmp_path: Path) -> None:
    ids = _choices()
    FORMATS[name](tmp_path, ids)
    found = trace_files.read(tmp_path)
    assert found == _counts(ids) == trace_files.read(tmp_path, experts=EXPERTS)
    plan = planner.plan(found, ranks=64, slots=17, domains=Domains.regular(64), aim=Aim(domain="node"))  # fmt: skip
    assert plan.certificate.one == (64, 64)
    with pytest.raises(PlacementError) as caught:
        trace_files.read(tmp_path, experts=256)
    _told(caught.value)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.95])
def test_a_truncated_file_is_named(name: str, keep: float, tmp_path: Path) -> None:
    FORMATS[name](tmp_path, _choices())
    victim = sorted(tmp_path.iterdir())[-1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(PlacementError) as caught:
        trace_files.read(tmp_path)
    _told(caught.value)
    assert caught.value.where == str(victim)


def _save(**tensors: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pytest.importorskip("safetensors.numpy").save_file(tensors, folder / "x.safetensors")

    return write


def _array(array: Any) -> Callable[[Path], None]:
    return lambda folder: numpy.save(folder / "x.npy", array)


def _dump(value: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        torch = pytest.importorskip("torch")
        made = {k: torch.tensor(v) for k, v in value.items()} if isinstance(value, dict) else value
        torch.save(made, folder / "x.pt")

    return write


def _ids(*shape: int, kind: Any = numpy.int16, fill: int = 0) -> Any:
    return numpy.full(shape, fill, kind)


LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "an id beyond the experts": (_array(_ids(2, 1, 2, fill=512)), "from 0 to 511"),
    "padding": (_array(_ids(2, 1, 2, fill=-1)), "leaving out padding"),
    "ids of one byte": (_array(_ids(2, 1, 2, kind=numpy.uint8)), "have wrapped"),
    "two dimensions": (_array(_ids(2, 2)), "tokens, layers, top_k"),
    "transposed": (_array(_ids(2, 8, 600)), "top_k, which comes last"),
    "fractions": (_array(_ids(2, 1, 2, kind=numpy.float32)), "integers"),
    "no tokens": (_array(_ids(0, 1, 2)), "some"),
    "no such tensor": (_save(logits=_ids(2, 2)), "a tensor `routed_experts`"),
    "too few layers named": (
        _save(top_indices=_ids(3, 2), layer=_ids(2)),
        "one `layer` for each row",
    ),
    "a negative layer": (_save(top_indices=_ids(2, 2), layer=_ids(2, fill=-1)), "layers from 0"),
    "layers without end": (
        _save(top_indices=_ids(1, 2), layer=_ids(1, kind=numpy.int64, fill=2**40)),
        "layers from 0",
    ),
    "a negative count": (_dump({"logical_count": [[[1, -2] * 256]]}), "layer 0, expert 1"),
    "counts that are fractions": (_dump({"logical_count": [[0.5] * 512]}), "whole numbers"),
    "another mode of the recorder": (_dump({"records": [1]}), "recorder-mode stat"),
    "not a dump": (_dump([1, 2]), "logical_count"),
    "counts of other experts": (_dump({"logical_count": [[1] * 256]}), "experts=256"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_file_is_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    write, says = LIES[name]
    write(tmp_path)
    with pytest.raises(PlacementError) as caught:
        trace_files.read(tmp_path, experts=EXPERTS)
    _told(caught.value)
    assert says in str(caught.value)
    assert caught.value.where.startswith(str(tmp_path / "x."))


def test_a_number_of_experts_that_no_ids_can_name_is_refused(tmp_path: Path) -> None:
    _npy(tmp_path, _choices())
    for experts in (0, -1, trace_files.MOST_EXPERTS + 1):
        with pytest.raises(PlacementError, match="1 to 65536 experts"):
            trace_files.read(tmp_path, experts=experts)


def test_a_file_that_is_not_there_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlacementError) as caught:
        trace_files.read(tmp_path / "nothing.json")
    _told(caught.value)


def _told(error: PlacementError) -> None:
    assert error.what == "a routing trace is refused"
    assert error.where
    assert error.value is not None
    assert error.rule
    assert error.remedy
