"""Recorded routing, read as loads [layers][experts]: vLLM's routed experts, SGLang's recorder, FLAME-MoE and CommitMoE traces, JSON.

Feeds the planner and the command line. Files are untrusted: nothing is unpickled that could run code, every expert id and every count
is checked before it is used, and an error names the file, what was seen, what the format asks for and one thing to try. Any number of
experts below `MOST_EXPERTS`; ids of one byte cannot name more than 256 and are refused where there are more.

    *.json               loads, logical_count, or a bare list: [layers][experts] or [passes][layers][experts]
    *.npy                expert ids [tokens, layers, top_k] (vLLM --enable-return-routed-experts), integers
    *.safetensors        the same as tensor `routed_experts`; or CommitMoE labels: `top_indices` [rows, top_k] and `layer` [rows]
    *.pt                 SGLang's recorder: `logical_count` [layers, experts] or [passes, layers, experts]; weights only
    *.parquet            FLAME-MoE: column `indices`, one file per MoE layer (layer_NN.parquet)
    a folder             all files of one of these kinds in it, summed up; layer_NN.parquet are layers
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.traces import Loads

#: Layers x experts; and experts, which two bytes name.
MOST_CELLS, MOST_EXPERTS = 1 << 26, 1 << 16
T = TypeVar("T")
_LAYER = re.compile(r"layer_(\d+)\.parquet")


def read(path: str | Path, *, experts: int | None = None) -> Loads:
    """Loads of one file or folder. `experts`: how many there are; needed where a file holds only the ids that were chosen.

    Without it the highest id that occurs is taken for the last expert. Raises `PlacementError` for what cannot be read or contradicts
    itself, and `OSError` never: a file that cannot be opened is one that cannot be read."""
    path = Path(path)
    if experts is not None and not 0 < experts <= MOST_EXPERTS:
        raise _wrong(path, experts, f"1 to {MOST_EXPERTS} experts", "the model's number of experts")
    files = _of(path, lambda: sorted(path.iterdir()) if path.is_dir() else [path])
    kinds = {f.suffix for f in files if f.suffix in _READERS and f.is_file()}
    if len(kinds) != 1:
        raise _wrong(path, sorted(kinds), f"one kind of {', '.join(_READERS)}", "one file of it, or a folder for each kind")  # fmt: skip
    kind = kinds.pop()
    found = [f for f in files if f.suffix == kind]
    if kind == ".parquet":
        return _layers_of_parquet(found, experts)
    rows = [_of(file, partial(_READERS[kind], file, experts)) for file in found]
    if experts is None and kind in _IDS:  # files of ids may end at different experts
        width = max(len(each[0]) for each in rows)
        rows = [[row + [0] * (width - len(row)) for row in each] for each in rows]
    total: Loads = []
    for file, more in zip(found, rows, strict=True):
        total = _sum(file, total, more)
    return total


def _of(file: Path, read: Callable[[], T]) -> T:
    """What `read` makes of `file`; whatever it raises is told of that file."""
    try:
        return read()
    except PlacementError:
        raise
    except ImportError as error:
        raise PlacementError(
            "a trace needs a library that is not here",
            where=str(file),
            value=str(error),
            remedy=f"pip install {error.name or 'it'}",
        ) from error
    except Exception as error:  # of somebody else's parser, about somebody else's file
        seen = f"{type(error).__name__}: {error}"[:200]
        raise _wrong(
            file, seen, "a readable file, whole", "copying or recording it again"
        ) from error


def _sum(file: Path, total: Loads, more: Loads) -> Loads:
    if not total:
        return more
    if (len(total), len(total[0])) != (len(more), len(more[0])):
        shapes = (len(total), len(total[0])), (len(more), len(more[0]))
        raise _wrong(
            file,
            shapes,
            "as many layers and experts as in the files before it",
            "one model per folder",
        )
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(total, more, strict=True)]


def checked(where: str | Path, value: Any) -> Loads:
    """`value` as loads if it is [layers][experts], or [passes][layers][experts], which is summed up, of whole numbers from 0."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list) or not value[0]:
        raise _wrong(where, value, "loads are lists [layers][experts]", "[[3, 1], [0, 4]]")
    if isinstance(value[0][0], list):
        total: Loads = []
        for one in value:
            total = _sum(Path(where), total, checked(where, one))
        return total
    width = len(value[0])
    if len(value) * width > MOST_CELLS:
        raise _wrong(where, (len(value), width), f"at most {MOST_CELLS} numbers", "fewer layers")
    for layer, row in enumerate(value):
        if not isinstance(row, list) or len(row) != width:
            seen = len(row) if isinstance(row, list) else row
            raise _wrong(where, seen, f"layer {layer} has as many experts as layer 0: {width}", "zeros for experts that nobody chose")  # fmt: skip
        for expert, count in enumerate(row):
            if type(count) is not int or not 0 <= count < 1 << 62:
                raise _wrong(
                    where, count, f"a whole number of tokens, from 0, at layer {layer}, expert {expert}", "counts as they were recorded",
                )  # fmt: skip
    return value


def _json(file: Path, experts: int | None) -> Loads:
    value = json.loads(file.read_bytes())
    if isinstance(value, dict):
        keys = [key for key in ("loads", "logical_count") if key in value]
        if not keys:
            raise _wrong(file, sorted(value)[:8], "a key `loads` or `logical_count`", "the loads alone, as a list")  # fmt: skip
        value = value[keys[0]]
    return _of_width(file, checked(file, value), experts)


def _of_width(file: Path, loads: Loads, experts: int | None) -> Loads:
    if experts is not None and len(loads[0]) != experts:
        raise _wrong(file, len(loads[0]), f"{experts} experts, as asked for", f"experts={len(loads[0])}")  # fmt: skip
    return loads


def _npy(file: Path, experts: int | None) -> Loads:
    import numpy

    return _counted(file, numpy.load(file, mmap_mode="r", allow_pickle=False), experts)


def _safetensors(file: Path, experts: int | None) -> Loads:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        names = set(tensors.keys())
        if "routed_experts" in names:
            return _counted(file, tensors.get_tensor("routed_experts"), experts)
        if {"top_indices", "layer"} <= names:
            rows, layer = tensors.get_tensor("top_indices"), tensors.get_tensor("layer")
            return _counted_rows(file, rows, layer, experts)
    raise _wrong(file, sorted(names)[:8], "a tensor `routed_experts`, or `top_indices` and `layer`", "renaming the tensors")  # fmt: skip


def _pt(file: Path, experts: int | None) -> Loads:
    import torch

    value = torch.load(file, map_location="cpu", weights_only=True)
    count = value.get("logical_count") if isinstance(value, dict) else None
    if not isinstance(count, torch.Tensor):
        seen = sorted(map(str, value))[:8] if isinstance(value, dict) else type(value).__name__
        raise _wrong(file, seen, "a dict with the tensor `logical_count`, as mode `stat` records", "--expert-distribution-recorder-mode stat")  # fmt: skip
    if count.is_floating_point() or count.numel() > MOST_CELLS:
        raise _wrong(file, (str(count.dtype), tuple(count.shape)), f"whole numbers, at most {MOST_CELLS}", "fewer passes per file")  # fmt: skip
    return _of_width(file, checked(file, count.tolist()), experts)


def _layers_of_parquet(files: list[Path], experts: int | None) -> Loads:
    numbered = {int(m[1]): f for f in files if (m := _LAYER.fullmatch(f.name))}
    if not numbered or len(numbered) != len(files):
        raise _wrong(files[0], [f.name for f in files][:4], "files named layer_NN.parquet", "one folder per iteration")  # fmt: skip
    rows = [
        _of(numbered[layer], partial(_one_layer, numbered[layer], experts))
        for layer in sorted(numbered)
    ]
    width = experts or max(map(len, rows))
    return [row + [0] * (width - len(row)) for row in rows]


def _one_layer(file: Path, experts: int | None) -> list[int]:
    import numpy

    parquet: Any = importlib.import_module("pyarrow.parquet")
    counts: Any = numpy.zeros(experts or 0, dtype=numpy.int64)
    for batch in parquet.ParquetFile(file).iter_batches(columns=["indices"]):
        ids = batch.column(0).flatten().to_numpy(zero_copy_only=False)
        more = numpy.asarray(_counted(file, ids.reshape(-1, 1, 1), experts)[0])
        wide = max(len(counts), len(more))
        counts = numpy.pad(counts, (0, wide - len(counts)))
        counts[: len(more)] += more
    return [int(count) for count in counts]


def _counted(file: Path, ids: Any, experts: int | None) -> Loads:
    """Loads of expert ids [tokens, layers, top_k]."""
    import numpy

    if ids.ndim != 3 or not numpy.issubdtype(ids.dtype, numpy.integer) or not ids.size:
        seen = (tuple(ids.shape), str(ids.dtype))
        raise _wrong(file, seen, "integers [tokens, layers, top_k], some", "one request's array after another")  # fmt: skip
    width = _width(file, ids, experts)
    if ids.shape[1] * width > MOST_CELLS:
        raise _wrong(file, (ids.shape[1], width), f"layers x experts at most {MOST_CELLS}", "the order [tokens, layers, top_k]")  # fmt: skip
    layers = range(ids.shape[1])
    return [numpy.bincount(ids[:, x].ravel(), minlength=width).tolist() for x in layers]


def _counted_rows(file: Path, rows: Any, layer: Any, experts: int | None) -> Loads:
    """Loads of expert ids [rows, top_k] whose layers are [rows]."""
    import numpy

    whole = all(numpy.issubdtype(x.dtype, numpy.integer) for x in (rows, layer))
    if rows.ndim != 2 or layer.shape != rows.shape[:1] or not rows.size or not whole:
        seen = [(tuple(x.shape), str(x.dtype)) for x in (rows, layer)]
        raise _wrong(file, seen, "integers [rows, top_k] and [rows]", "one `layer` for each row of `top_indices`")  # fmt: skip
    width, last = _width(file, rows, experts), int(layer.max())
    if layer.min() < 0 or (last + 1) * width > MOST_CELLS:
        raise _wrong(file, (int(layer.min()), last), f"layers from 0, layers x experts at most {MOST_CELLS}", "numbering MoE layers from 0")  # fmt: skip
    return [
        numpy.bincount(rows[layer == x].ravel(), minlength=width).tolist() for x in range(last + 1)
    ]


def _width(file: Path, ids: Any, experts: int | None) -> int:
    """Experts of expert ids [..., top_k]."""
    low, high, most = int(ids.min()), int(ids.max()), experts or MOST_EXPERTS
    if low < 0 or high >= most:
        raise _wrong(file, (low, high), f"expert ids from 0 to {most - 1}", f"experts={high + 1}, or leaving out padding" if low >= 0 else "leaving out padding")  # fmt: skip
    if experts is not None and ids.shape[-1] > experts:
        raise _wrong(file, tuple(ids.shape), f"top_k, which comes last, at most {experts} experts", "the order [tokens, layers, top_k]")  # fmt: skip
    if experts is not None and experts > 256 and ids.dtype.itemsize == 1:
        raise _wrong(file, str(ids.dtype), f"ids of two bytes or more for {experts} experts: these have wrapped", "recording as int16")  # fmt: skip
    return experts or high + 1


def _wrong(where: str | Path, value: object, rule: str, remedy: str) -> PlacementError:
    return PlacementError(
        "a routing trace is refused", where=str(where), value=value, rule=rule, remedy=remedy
    )


_READERS: dict[str, Callable[[Path, int | None], Loads]] = {
    ".json": _json,
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".pt": _pt,
    ".parquet": lambda file, experts: _layers_of_parquet([file], experts),
}

#: Kinds whose files hold ids, not counts.
_IDS = {".npy", ".safetensors"}


def kinds() -> Iterable[str]:
    """Endings of the files that can be read."""
    return tuple(_READERS)
