"""Turns an error that an engine met (an exception, or the text of one) into a reading: which CUDA or NCCL error, of which class.

Called where an engine fails, on the way from the exception to fusion. Pure but for the clock; never raises, whatever it is given.
Memory that is full and calls that were refused are readings too, healthy ones: they say that the device answered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Union

from dynamo_gpu_ft.health.catalogue import tables
from dynamo_gpu_ft.health.catalogue.verdicts import UNKNOWN, state_of
from dynamo_gpu_ft.health.readings import Reading, Source
from dynamo_gpu_ft.topology import Device

# A log pasted into a message must not cost seconds; what failed stands at the beginning or at the end.
_HEAD, _TAIL, _SHOWN = 12_000, 4_000, 512
_CHAIN = 8

_CUDA_MARK = r"(?:CUDA(?: driver| runtime)? [Ee]rror|[Cc][Uu][Dd][Aa] (?:failure|error)|Triton Error \[CUDA\])"
_NCCL_MARK = r"(?:NCCL [Ee]rror|NCCL WARN|NCCL failure|ncclResult)"
_NUMBERED = {
    "cuda": re.compile(_CUDA_MARK + r"(?: code)?[ :=#(]{1,3}(\d{1,4})\b"),
    "nccl": re.compile(_NCCL_MARK + r"(?: code)?[ :=#(]{1,3}(\d{1,2})\b"),
}
# How far behind its mark a text may stand: "NCCL error in: <path>:<line>, unhandled cuda error".
_REACH = {"cuda": 200, "nccl": 300}
_MARKS = {"cuda": re.compile(_CUDA_MARK), "nccl": re.compile(_NCCL_MARK)}


class _Found(NamedTuple):
    probe: str
    code: int | None
    name: str
    class_name: str


# NVML's GPU_IS_LOST and RESET_REQUIRED
_NVML_LOST = {
    15: _Found("gpu_lost", 15, "lost", "GPU_LOST"),
    16: _Found("gpu_lost", 16, "reset_required", "GPU_FATAL"),
}


def engine_error(
    error: Union[BaseException, str],
    *,
    shard: int | None = None,
    device: Device | None = None,
    pid: int | None = None,
    at: float | None = None,
) -> Reading | None:
    """The reading of an error, or None when it says nothing about a GPU or a communicator.

    Probe "cuda", "nccl" or "gpu_lost"; `code` where the error has a number; facts: `class` (the catalogue's), `error` (its name),
    `exception` (the type), `nccl` (NCCL's name for a CUDA error inside it). An exception is read with what caused it.
    at  seconds of CLOCK_MONOTONIC, now when None
    """
    chain: Sequence[BaseException | str] = [error] if isinstance(error, str) else _chain(error)
    text = "\n".join(each if isinstance(each, str) else _said(each) for each in chain)
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]}\n...\n{text[-_TAIL:]}"
    found = _numbered(chain) or _in_text(text)
    if found is None:
        return None
    nccl = _named("nccl", text)
    facts = {"class": found.class_name, "error": found.name}
    if not isinstance(error, str):
        facts["exception"] = type(error).__name__
    if found.probe == "cuda" and nccl is not None:
        facts["nccl"] = nccl.name
    return Reading(
        at=time.monotonic() if at is None else at,
        time=time.time(),
        source=Source.ENGINE,
        probe=found.probe,
        state=state_of(found.class_name),
        device=device or Device(),
        code=found.code,
        text=text[:_SHOWN],
        facts=facts,
        pid=pid,
        pid_space="" if pid is None else "own",
        shard=shard,
    )


def _chain(error: BaseException) -> list[BaseException | str]:
    """An exception and what caused it, nearest first, bounded and free of circles."""
    found: list[BaseException | str] = []
    here: BaseException | None = error
    while here is not None and len(found) < _CHAIN and all(here is not each for each in found):
        found.append(here)
        hidden = here.__suppress_context__
        here = here.__cause__ or (None if hidden else here.__context__)
    return found


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a foreign __str__ may do anything
        return type(error).__name__


def _numbered(chain: Sequence[BaseException | str]) -> _Found | None:
    """The number that an exception carries: torch's AcceleratorError, CuPy's and NVML's errors."""
    for error in chain:
        kind = type(error).__name__
        if kind == "AcceleratorError":
            code = getattr(error, "error_code", None)
        elif kind in ("CUDARuntimeError", "CUDADriverError"):
            code = getattr(error, "status", None)
        elif kind.startswith("NVMLError"):
            value = getattr(error, "value", None)
            if value in _NVML_LOST:
                return _NVML_LOST[value]
            continue
        else:
            continue
        if type(code) is int:
            return _by_code("cuda", code)
    return None


def _in_text(text: str) -> _Found | None:
    """A fault before a refusal, a refusal before an error that no table holds; CUDA before the communicator it took along."""
    cuda, nccl = _named("cuda", text), _named("nccl", text)
    if nccl is not None and _faulty(nccl) and cuda is not None and not _faulty(cuda):
        # The call itself was harmless, but the communicator that made it is gone.
        nccl = nccl._replace(class_name="COMM_FAILED")
    rows = [
        _Found(row.probe, None, row.name, row.class_name)
        for row in tables.engine_texts()
        if _pattern(row.pattern).search(text)
    ]
    lost = [row for row in rows if row.probe == "gpu_lost"]
    known = [each for each in (cuda, nccl) if each is not None]
    ordered = [
        *lost,
        *(each for each in known if _faulty(each)),
        *(row for row in rows if _faulty(row) and row.class_name != UNKNOWN),
        *known,
        *(row for row in rows if not _faulty(row)),
        *rows,
    ]
    return ordered[0] if ordered else None


def _faulty(found: _Found) -> bool:
    return found.class_name != "NOT_A_FAULT"


def _named(probe: str, text: str) -> _Found | None:
    """The error of one library that a text names, by name, by number or by the library's own words behind its mark."""
    by_name = [_by_code(probe, _names(probe)[m[0]]) for m in _name_pattern(probe).finditer(text)]
    if by_name:
        return next((each for each in by_name if _faulty(each)), by_name[0])
    for match in _NUMBERED[probe].finditer(text):
        if int(match[1]):
            return _by_code(probe, int(match[1]))
    for mark in _MARKS[probe].finditer(text):
        window = text[mark.end() : mark.end() + _REACH[probe]]
        first = _words_pattern(probe).search(window)
        if first is not None:
            return _by_code(probe, _words(probe)[first[0]])
    return None


def _by_code(probe: str, code: int) -> _Found:
    row = (tables.cuda() if probe == "cuda" else tables.nccl()).get(code)
    if row is None:
        return _Found(probe, code, UNKNOWN, UNKNOWN)
    return _Found(probe, code, row.names[0], row.class_name)


@cache
def _names(probe: str) -> dict[str, int]:
    found = tables.cuda() if probe == "cuda" else tables.nccl()
    return {name: row.code for row in found.values() for name in row.names if row.code}


@cache
def _words(probe: str) -> dict[str, int]:
    found = tables.cuda() if probe == "cuda" else tables.nccl()
    # The same words for two codes ("device kernel image is invalid"): the first stands for both, they are of one class.
    return {row.text: row.code for row in reversed(found.values()) if row.code and row.text}


@cache
def _name_pattern(probe: str) -> re.Pattern[str]:
    return _any_of(_names(probe), r"\b")


@cache
def _words_pattern(probe: str) -> re.Pattern[str]:
    return _any_of(_words(probe), "")


def _any_of(words: dict[str, int], edge: str) -> re.Pattern[str]:
    # Longest first, or "invalid device symbol" would be found where a longer one stands.
    longest = sorted(words, key=len, reverse=True)
    return re.compile(f"{edge}(?:{'|'.join(re.escape(word) for word in longest)}){edge}")


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
