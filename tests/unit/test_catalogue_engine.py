"""Errors of engines as readings: every code and name of CUDA and NCCL, what torch and vLLM print, and what is no fault."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.health.catalogue import lookup, tables
from dynamo_gpu_ft.health.catalogue.engine import engine_error
from dynamo_gpu_ft.health.incidents import Action, Unusable
from dynamo_gpu_ft.health.readings import Reading, Source, State

ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\n"
    "Search for `cudaErrorIllegalAddress' in the CUDA documentation for more information.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.\n"
)
IN_NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:219, unhandled cuda error "
    "(run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure {}"
)


def read(error: BaseException | str) -> Reading:
    found = engine_error(error, shard=3, at=7.0)
    assert found is not None, error
    assert (found.at, found.shard, found.source) == (7.0, 3, Source.ENGINE)
    return found


@pytest.mark.parametrize(
    ("text", "probe", "code", "class_name"),
    [
        (ILLEGAL, "cuda", 700, "APP"),
        ("CUDA error: device-side assert triggered", "cuda", 710, "APP"),
        ("CUDA error: uncorrectable ECC error encountered", "cuda", 214, "APP_CONTAINED"),
        ("CUDA error: no CUDA-capable device is detected", "cuda", 100, "GPU_SUSPECT"),
        ("CUDA driver error: unspecified launch failure", "cuda", 719, "APP"),
        ("CUDA error: unknown error", "cuda", 999, "GPU_SUSPECT"),
        ("Triton Error [CUDA]: misaligned address", "cuda", 716, "APP"),
        ("cuMemcpyBatchAsync: CUDA_ERROR_LAUNCH_FAILED (719)", "cuda", 719, "APP"),
        ("Failed: Cuda error /w/csrc/custom_all_reduce.cuh:453 'an illegal memory access was encountered'", "cuda", 700, "APP"),
        ("CUDA error: cudaError_t.cudaErrorEccUncorrectable (x); CUDA_ERROR_NVLINK_UNCORRECTABLE", "cuda", 220, "LINK_FATAL"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`", "cuda", None, "GPU_SUSPECT"),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "cuda", None, "GPU_SUSPECT"),
        ("CUDA error: the flux ran out", "cuda", None, "UNKNOWN"),
        ("CUDA error 4711", "cuda", 4711, "UNKNOWN"),
        (IN_NCCL.format("'an illegal memory access was encountered'"), "cuda", 700, "APP"),
        (IN_NCCL.format("999 'unknown error'"), "cuda", 999, "GPU_SUSPECT"),
        (IN_NCCL.format("2 'out of memory'"), "nccl", 1, "COMM_FAILED"),
        ("NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "nccl", 1, "GPU_SUSPECT"),
        ("NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)", "nccl", 2, "COMM_FAILED"),
        ("NCCL error: remote process exited or there was a network error", "nccl", 6, "COMM_FAILED"),
        ("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.", "nccl", 6, "COMM_FAILED"),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE, NumelIn=1, Timeout(ms)=600000) ran for 600004 milliseconds before timing out.", "nccl", None, "COMM_FAILED"),
        ("[PG ID 0 PG GUID 0 Rank 1] Process group watchdog thread terminated with exception: " + ILLEGAL, "cuda", 700, "APP"),
        ("NCCL communicator was aborted on rank 1. ", "nccl", None, "COMM_FAILED"),
        ("host:1:2 [0] misc/socket.cc:484 NCCL WARN socketProgress: Connection closed by remote peer h<1>", "nccl", None, "COMM_FAILED"),
        ("host:1:2 [0] NCCL WARN the moon is full", "nccl", None, "UNKNOWN"),
        ("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:10895", "nccl", None, "COMM_FAILED"),
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [192.168.70.92]:25266: Connection reset by peer", "nccl", None, "COMM_FAILED"),
        ("[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete", "nccl", None, "COMM_FAILED"),
        ("Application timeout caused pair closure", "nccl", None, "COMM_FAILED"),
        ("Worker failed with error '" + ILLEGAL + "', please check the stack trace above", "cuda", 700, "APP"),
        ("GPU is lost", "gpu_lost", None, "GPU_LOST"),
    ],
)  # fmt: skip
def test_what_torch_vllm_and_gloo_print_is_the_fault_it_names(
    text: str, probe: str, code: int | None, class_name: str
) -> None:
    found = read(text)
    assert (found.probe, found.code, found.facts["class"]) == (probe, code, class_name)
    assert found.state is State.FAILED
    # The exception is read as its text is.
    raised = read(RuntimeError(text))
    assert (raised.probe, raised.code, raised.facts["class"]) == (probe, code, class_name)
    assert raised.facts["exception"] == "RuntimeError"
    meaning = lookup.of(found)
    if probe != "gpu_lost":
        assert meaning is not None
        assert meaning.class_name == class_name


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB",
        "CUDA error: out of memory",
        "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62",
        "CUDA error: invalid argument",
        "CUDA error: no kernel image is available for execution on the device",
        "NCCL error: invalid usage (run with NCCL_DEBUG=WARN for details)",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_memory_that_is_full_and_calls_that_are_refused_are_no_faults(text: str) -> None:
    found = read(text)
    assert (found.state, found.facts["class"]) == (State.HEALTHY, "NOT_A_FAULT")
    meaning = lookup.of(found)
    assert meaning is not None
    assert (meaning.verdict.unusable, meaning.verdict.action) == (Unusable.NOTHING, Action.NONE)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the prompt is too long"),
        KeyError("cmpl-1"),
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        TimeoutError("timed out"),
        "an HTTP client went away: Connection refused",
        "",
    ],
)
def test_an_error_that_names_no_gpu_and_no_communicator_is_no_reading(
    error: BaseException | str,
) -> None:
    assert engine_error(error) is None


def test_every_cuda_and_nccl_code_is_found_by_its_names_its_number_and_its_text() -> None:
    for probe, mark, table in (("cuda", "CUDA error", tables.cuda()), ("nccl", "NCCL error", tables.nccl())):  # fmt: skip
        for row in table.values():
            if not row.code:
                continue
            ways = [f"{mark}: {name}" for name in row.names] + [f"{mark} {row.code}"]
            ways += [f"{mark}: {row.text}"] if row.text else []
            for text in ways:
                found = read(text)
                assert (found.probe, found.facts["class"]) == (probe, row.class_name), text
                same = {other.code for other in table.values() if other.text == row.text}
                assert found.code in (same if text.endswith(row.text or "?") else {row.code}), text


def test_the_number_an_exception_carries_counts_before_its_text() -> None:
    accelerator = type("AcceleratorError", (RuntimeError,), {"error_code": 719})("CUDA error: ?")
    assert read(accelerator).code == 719
    cupy = type("CUDARuntimeError", (RuntimeError,), {"status": 2})("cudaErrorMemoryAllocation")
    assert read(cupy).state is State.HEALTHY
    lost = type("NVMLError_GpuIsLost", (Exception,), {"value": 15})("GPU is lost")
    assert (read(lost).probe, read(lost).code) == ("gpu_lost", 15)
    odd = type("AcceleratorError", (RuntimeError,), {"error_code": "x"})("CUDA error: misaligned address")  # fmt: skip
    assert read(odd).code == 716


def test_an_exception_is_read_with_what_caused_it() -> None:
    try:
        try:
            raise RuntimeError(ILLEGAL)
        except RuntimeError as cause:
            raise KeyError("EngineCore died") from cause
    except KeyError as error:
        found = read(error)
    assert (found.code, found.facts["exception"]) == (700, "KeyError")
    circle = RuntimeError("no more")
    circle.__context__ = circle
    assert engine_error(circle) is None


def test_an_exception_that_cannot_be_printed_is_no_accident() -> None:
    def fail(_self: object) -> str:
        raise ValueError("no text")

    assert engine_error(type("Odd", (RuntimeError,), {"__str__": fail})()) is None


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_text_makes_it_fail(before: str, after: str) -> None:
    engine_error(before)
    assert read(f"{before} \nCUDA error: an illegal memory access was encountered\n {after}").text


def test_a_text_without_end_is_cut_and_read_at_both_ends_in_no_time() -> None:
    long = "NCCL gloo c10d [Errno " * 200_000
    assert engine_error(long + ILLEGAL) is not None
    for hostile in (
        "NCCL gloo ",
        "NET/IB ",
        "CUDA error ",
        "Connection closed by ",
        "CUDA CUDA driver ",
    ):
        began = time.monotonic()
        engine_error(hostile * 20_000)
        assert time.monotonic() - began < 5.0, hostile
    found = read(ILLEGAL + long)
    assert found.code == 700
    assert len(found.text) <= 512


def test_an_ecc_error_in_a_context_leaves_the_gpu_to_the_xids() -> None:
    judged = lookup.cuda(214).verdict
    assert (judged.unusable, judged.certain) == (Unusable.CONTEXT, False)
