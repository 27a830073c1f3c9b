"""Recorded routing, read as loads [layers][experts]: vLLM's routed experts, SGLang's recorder, FLAME-MoE and CommitMoE traces, JSON.

Feeds the planner and the command line. Files are untrusted: nothing is unpickled that could run code, every expert id and every count
is checked before it is used, and an error names the file, what was seen and what the format asks for.

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
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.traces import Loads

MOST_CELLS = 1 << 26
_LAYER = re.compile(r"layer_(\d+)\.parquet")


def read(path: str | Path, *, experts: int | None = None) -> Loads:
    """Loads of one file or folder. `experts`: how many there are; needed where a file holds only the ids that were chosen.

    Raises `PlacementError` for what cannot be read or contradicts itself."""
    path = Path(path)
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        kinds = {f.suffix for f in files if f.suffix in _READERS and f.is_file()}
        if len(kinds) != 1:
            raise _wrong(path, sorted(kinds), f"one kind of {', '.join(_READERS)}")
        kind = kinds.pop()
        found = [f for f in files if f.suffix == kind]
        if kind == ".parquet":
            return _layers_of_parquet(found, experts)
        total: Loads = []
        for file in found:
            total = _sum(file, total, _READERS[kind](file, experts))
        return total
    except PlacementError:
        raise
    except ImportError as error:
        raise PlacementError(
            "a trace needs a library that is not here",
            where=str(path),
            value=str(error),
            remedy=f"pip install {error.name or 'it'}",
        ) from error
    except Exception as error:  # of somebody else's parser, about somebody else's file
        raise _wrong(path, f"{type(error).__name__}: {error}", "a readable file") from error


def _sum(file: Path, total: Loads, more: Loads) -> Loads:
    if not total:
        return more
    if (len(total), len(total[0])) != (len(more), len(more[0])):
        shapes = (len(total), len(total[0])), (len(more), len(more[0]))
        raise _wrong(file, shapes, "as many layers and experts as in the files before it")
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(total, more, strict=True)]


def checked(where: str | Path, value: Any) -> Loads:
    """`value` as loads if it is [layers][experts], or [passes][layers][experts], which is summed up, of whole numbers from 0."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list) or not value[0]:
        raise _wrong(where, value, "loads are lists [layers][experts]")
    if isinstance(value[0][0], list):
        total: Loads = []
        for one in value:
            total = _sum(Path(where), total, checked(where, one))
        return total
    width = len(value[0])
    if len(value) * width > MOST_CELLS:
        raise _wrong(where, (len(value), width), f"at most {MOST_CELLS} numbers")
    for layer, row in enumerate(value):
        if not isinstance(row, list) or len(row) != width:
            raise _wrong(where, row, f"layer {layer} has as many experts as layer 0: {width}")
        for expert, count in enumerate(row):
            if type(count) is not int or not 0 <= count < 1 << 62:
                raise _wrong(
                    where, count, f"a whole number of tokens at layer {layer}, expert {expert}"
                )
    return value


def _json(file: Path, experts: int | None) -> Loads:
    value = json.loads(file.read_bytes())
    if isinstance(value, dict):
        keys = [key for key in ("loads", "logical_count") if key in value]
        if not keys:
            raise _wrong(file, sorted(value)[:8], "a key `loads` or `logical_count`")
        value = value[keys[0]]
    return _of_width(file, checked(file, value), experts)


def _of_width(file: Path, loads: Loads, experts: int | None) -> Loads:
    if experts is not None and len(loads[0]) != experts:
        raise _wrong(file, len(loads[0]), f"{experts} experts, as asked for")
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
    raise _wrong(file, sorted(names)[:8], "a tensor `routed_experts`, or `top_indices` and `layer`")


def _pt(file: Path, experts: int | None) -> Loads:
    import torch

    value = torch.load(file, map_location="cpu", weights_only=True)
    count = value.get("logical_count") if isinstance(value, dict) else None
    if not isinstance(count, torch.Tensor):
        seen = sorted(map(str, value))[:8] if isinstance(value, dict) else type(value).__name__
        raise _wrong(file, seen, "a dict with the tensor `logical_count`, as mode `stat` records")
    if count.is_floating_point() or count.numel() > MOST_CELLS:
        raise _wrong(file, (str(count.dtype), tuple(count.shape)), "whole numbers, not too many")
    return _of_width(file, checked(file, count.tolist()), experts)


def _layers_of_parquet(files: list[Path], experts: int | None) -> Loads:
    numbered = {int(m[1]): f for f in files if (m := _LAYER.fullmatch(f.name))}
    if not numbered or len(numbered) != len(files):
        raise _wrong(files[0], [f.name for f in files][:4], "files named layer_NN.parquet")
    rows = [_one_layer(numbered[layer], experts) for layer in sorted(numbered)]
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
        raise _wrong(
            file, (tuple(ids.shape), str(ids.dtype)), "integers [tokens, layers, top_k], some"
        )
    width = _width(file, ids, experts)
    layers = range(ids.shape[1])
    return [numpy.bincount(ids[:, x].ravel(), minlength=width).tolist() for x in layers]


def _counted_rows(file: Path, rows: Any, layer: Any, experts: int | None) -> Loads:
    """Loads of expert ids [rows, top_k] whose layers are [rows]."""
    import numpy

    whole = all(numpy.issubdtype(x.dtype, numpy.integer) for x in (rows, layer))
    if rows.ndim != 2 or layer.shape != rows.shape[:1] or not rows.size or not whole:
        raise _wrong(file, (rows.shape, layer.shape), "integers [rows, top_k] and [rows]")
    width, last = _width(file, rows, experts), int(layer.max())
    if layer.min() < 0 or (last + 1) * width > MOST_CELLS:
        raise _wrong(file, (int(layer.min()), last), "layers from 0, not too many")
    return [
        numpy.bincount(rows[layer == x].ravel(), minlength=width).tolist() for x in range(last + 1)
    ]


def _width(file: Path, ids: Any, experts: int | None) -> int:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= (experts or 1 << 16):
        raise _wrong(file, (low, high), f"expert ids from 0 to {(experts or 1 << 16) - 1}")
    return experts or high + 1


def _wrong(where: str | Path, value: object, rule: str) -> PlacementError:
    return PlacementError("a routing trace is refused", where=str(where), value=value, rule=rule)


_READERS: dict[str, Callable[[Path, int | None], Loads]] = {
    ".json": _json,
    ".npy": _npy,
    ".safetensors": _safetensors,
    ".pt": _pt,
    ".parquet": lambda file, experts: _layers_of_parquet([file], experts),
}


def kinds() -> Iterable[str]:
    """Endings of the files that can be read."""
    return tuple(_READERS)
