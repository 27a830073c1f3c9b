"""The simulated NCCL by its C calls: what it refuses, as NCCL does, and that nobody takes it for a real one."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes import byref, c_int, c_void_p
from pathlib import Path

import pytest

from dynamo_gpu_ft.errors import ConfigError, GpuFtError
from dynamo_gpu_ft.recovery.comm.base import CommError, CommTimeout
from dynamo_gpu_ft.recovery.comm.nccl import NcclBackend
from dynamo_gpu_ft.recovery.comm.nccl_library import SHRINK_ABORT, Config, NcclLibrary, UniqueId
from dynamo_gpu_ft.recovery.comm.nccl_streams import HostStream
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous
from dynamo_gpu_ft.recovery.group.base import Deadline
from dynamo_gpu_ft.sim.nccl import build

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
INVALID_ARGUMENT, INVALID_USAGE = "status 4", "status 5"


@pytest.fixture(scope="module")
def library() -> NcclLibrary:
    return NcclLibrary(str(build.library()))


def wait(library: NcclLibrary, comm: c_void_p) -> None:
    end = Deadline.after(10)
    while not (comm and library.progress(comm)):
        if not end.left_s:
            raise CommTimeout("not in time")
        os.sched_yield()


@pytest.fixture
def pair(library: NcclLibrary) -> Iterator[list[c_void_p]]:
    """Both ranks of one communicator in this process."""
    comms, unique = [c_void_p(), c_void_p()], UniqueId()
    library.call("ncclGetUniqueId", byref(unique))
    for rank, comm in enumerate(comms):
        config = byref(Config.non_blocking())
        library.call("ncclCommInitRankConfig", byref(comm), 2, unique, rank, config)
        if rank == 0:
            assert not library.progress(comm), "it waits for the other"
    for comm in comms:
        wait(library, comm)
    yield comms
    for comm in comms:
        library.call("ncclCommAbort", comm)


def reduce(library: NcclLibrary, comm: c_void_p, tensor: torch.Tensor, kind: int = 7) -> None:
    at = c_void_p(tensor.data_ptr())
    library.call("ncclAllReduce", at, at, tensor.numel(), kind, 0, comm, c_void_p(0))


def finish(library: NcclLibrary) -> None:
    done, end = HostStream(library).mark(), Deadline.after(10)
    while not done():
        assert end.left_s
        os.sched_yield()


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.int8, 0), (torch.uint8, 1), (torch.int32, 2), (torch.int64, 4), (torch.float16, 6), (torch.float32, 7),
        (torch.float64, 8), (torch.bfloat16, 9),
    ],
)  # fmt: skip
def test_sums_of_every_type_are_torchs_own(
    library: NcclLibrary, pair: list[c_void_p], dtype: torch.dtype, kind: int
) -> None:
    if dtype.is_floating_point:
        random = torch.Generator().manual_seed(1)
        bits = torch.randint(0, 1 << 16, (2, 4099), generator=random).to(torch.uint16)
        half = dtype in (torch.float16, torch.bfloat16)
        first, second = (
            bits.view(dtype) if half else torch.randn(2, 4099, generator=random).to(dtype)
        )
    else:
        first, second = torch.randint(-60 if dtype.is_signed else 0, 60, (2, 4099)).to(dtype)
    ranks = [first.clone(), second.clone()]
    # Two threads' worth of ranks in one process, on one stream each: one stream would have the first wait for the second for ever.
    for number, (comm, tensor) in enumerate(zip(pair, ranks, strict=True)):
        at = c_void_p(tensor.data_ptr())
        library.call("ncclAllReduce", at, at, 4099, kind, 0, comm, c_void_p(number + 1))
    for number in (1, 2):
        mark, end = ctypes.c_uint64(0), Deadline.after(10)
        library.simulated_done(c_void_p(number), mark)
        while not library.simulated_done(c_void_p(number), mark):
            assert end.left_s
            os.sched_yield()
    expected = first + second
    for tensor in ranks:
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(expected))


def test_what_nccl_refuses_is_refused(library: NcclLibrary, pair: list[c_void_p]) -> None:
    one, new, config = torch.ones(4), c_void_p(), byref(Config.non_blocking())
    gone = (c_int * 1)(1)
    for kind in (-1, 12):
        with pytest.raises(CommError, match=INVALID_ARGUMENT):
            reduce(library, pair[0], one, kind)
    with pytest.raises(CommError, match=INVALID_ARGUMENT):
        library.call(
            "ncclCommInitRankConfig", byref(new), 2, UniqueId(), 0, config
        )  # a real one's id
    with pytest.raises(CommError, match=INVALID_ARGUMENT):
        library.call("ncclCommShrink", pair[1], gone, 1, byref(new), config, SHRINK_ABORT)  # itself
    with pytest.raises(CommError, match=INVALID_ARGUMENT):
        library.call("ncclCommGrow", pair[0], 2, None, -1, byref(new), config)  # no larger
    reduce(library, pair[0], one)  # the other never comes
    for name, arguments in (
        ("ncclCommShrink", (gone, 1, byref(new), config, 0)),
        ("ncclCommGrow", (3, None, -1, byref(new), config)),
        ("ncclCommGetUniqueId", (byref(UniqueId()),)),
    ):
        with pytest.raises(CommError, match=INVALID_USAGE):
            library.call(name, pair[0], *arguments)
    library.call("ncclCommRevoke", pair[0], 0)
    finish(library)
    with pytest.raises(CommError, match=INVALID_ARGUMENT):
        library.call("ncclCommRevoke", pair[0], 0)
    with pytest.raises(CommError, match=INVALID_USAGE):
        reduce(library, pair[0], one)
    with pytest.raises(CommError, match=INVALID_USAGE):
        library.call("ncclCommGrow", pair[0], 3, None, -1, byref(new), config)
    library.call("ncclCommShrink", pair[0], gone, 1, byref(new), config, SHRINK_ABORT)
    wait(library, new)
    reduce(library, new, one)
    finish(library)
    assert one.tolist() == [1.0] * 4
    library.call("ncclCommAbort", new)
    with pytest.raises(CommError, match=INVALID_ARGUMENT):
        library.call("ncclCommAbort", new)


def test_an_abort_ends_a_shrink_that_waits_for_a_rank_that_does_not_come(
    library: NcclLibrary,
) -> None:
    comms, unique, new = [c_void_p() for _ in range(3)], UniqueId(), c_void_p()
    library.call("ncclGetUniqueId", byref(unique))
    config = byref(Config.non_blocking())
    for rank, comm in enumerate(comms):
        library.call("ncclCommInitRankConfig", byref(comm), 3, unique, rank, config)
    for comm in comms:
        wait(library, comm)
    arguments = ((c_int * 1)(2), 1, byref(new), config, SHRINK_ABORT)
    library.call("ncclCommShrink", comms[0], *arguments)
    assert not new
    for comm in comms:
        library.call("ncclCommAbort", comm)
    assert not new
    assert not list(Path("/dev/shm").glob("simulated-nccl-*"))


def test_ranks_whose_tensors_do_not_fit_are_told(
    library: NcclLibrary, pair: list[c_void_p]
) -> None:
    tensors = [torch.ones(8), torch.ones(12)]
    for number, (comm, tensor) in enumerate(zip(pair, tensors, strict=True)):
        at = c_void_p(tensor.data_ptr())
        library.call("ncclAllReduce", at, at, tensor.numel(), 7, 0, comm, c_void_p(number + 1))
    end, told = Deadline.after(10), 0
    while end.left_s and not told:
        for comm in pair:
            try:
                library.progress(comm)
            except CommError as error:
                told += INVALID_USAGE in str(error)
    assert told


def test_it_is_taken_only_where_it_is_named_and_only_for_host_memory(
    library: NcclLibrary, tmp_path: Path
) -> None:
    assert library.simulated
    rendezvous = Rendezvous(f"file:{tmp_path}", "e")
    with pytest.raises(CommError, match="simulated one: it has no GPUs"):
        NcclBackend(rendezvous, library=library)
    script = "from dynamo_gpu_ft.recovery.comm import nccl_library as n\nn._candidates = lambda: ['libnccl.so.2']\nn.NcclLibrary()"
    path = os.fspath(Path(library.path).parent)
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"LD_LIBRARY_PATH": path}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "simulated one and was not asked for" in done.stderr


def test_an_engine_says_why_it_cannot_have_a_back_end(library: NcclLibrary) -> None:
    from dynamo_gpu_ft.engines.reference.backends import check
    from dynamo_gpu_ft.engines.reference.options import Options

    check(Options(model="m"))
    named = {"nccl_library": library.path}
    check(Options(model="m", backend="nccl", **named))
    for options, why in (
        (Options(model="m", backend="mpi"), "one of gloo, nccl"),
        (Options(model="m", backend="nccl"), "no simulated NCCL is named"),
        (Options(model="m", backend="nccl", device="cuda", **named), "is a simulated NCCL"),
        (Options(model="m", backend="nccl", nccl_library="/nowhere.so"), "nowhere"),
    ):
        with pytest.raises(ConfigError, match=why):
            check(options)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(GpuFtError, match="the simulated NCCL cannot be built"):
        build.library(tmp_path)
