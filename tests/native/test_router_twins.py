"""The router mask: its CUDA source on a warp of threads and its Triton version against the torch reference, and the reference against words.

The compiled CUDA kernel runs in tests/gpu; all versions have the same inputs.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from router_cases import agree, case_of  # noqa: E402
from triton_path import TRITON  # noqa: E402

from dynamo_gpu_ft.kernels import compile as kernels  # noqa: E402
from dynamo_gpu_ft.kernels import router_reference as reference  # noqa: E402

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """kernels/router_mask.cuh as g++ compiles it."""
    library = tmp_path_factory.mktemp("router") / "router.so"
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared", "-pthread",
         f"-I{ROOT / 'kernels'}", str(HERE / "router_warp.cpp"), "-o", str(library)],
        check=True, timeout=100,
    )  # fmt: skip
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def warp(library: ctypes.CDLL) -> Callable[[dict[str, Any]], Any]:
    function = library.run
    function.restype = None

    def run(case: dict[str, Any]) -> Any:
        tokens, experts = case["logits"].shape
        losses, _, width = case["table"].shape
        logical = torch.full((tokens, case["topk"]), 77, dtype=torch.int32)
        slots, weights = torch.full_like(logical, 77), torch.full(logical.shape, 77.0)
        results, loss = (
            torch.zeros(3, dtype=torch.int64),
            torch.tensor([case["loss"]], dtype=torch.int32),
        )

        def at(tensor: Any) -> ctypes.c_void_p:
            return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

        word, wide = ctypes.c_uint32, ctypes.c_uint64
        function(
            at(case["logits"]), at(case["choose"]), word(tokens), word(experts), word(case["topk"]), word(case["first"]), at(loss),
            word(losses), at(case["table"]), at(case["counts"]), wide(experts * width), wide(experts), word(width),
            word(case["physical"]), at(case["alive"]), word(case["flags"]), at(logical), at(slots), at(weights), at(results),
        )  # fmt: skip
        return logical, slots, weights, results.tolist()

    return run


def test_the_cuda_source_does_what_the_reference_does(rng: random.Random, warp: Any) -> None:
    for number in range(60):
        case = case_of(rng, broken=number % 3 == 2)
        agree(reference.route(**case), warp(case), case)


def test_the_launch_hands_the_kernel_what_the_reference_gets(
    rng: random.Random, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the driver's calls end in the warp of threads."""
    from dynamo_gpu_ft.kernels.router import RouterMask

    ways = [("built", lambda: [b"bad"]), ("nvrtc", lambda: [b"good"])]
    monkeypatch.setattr(kernels, "candidates", lambda compute, names: iter(ways))
    mask = RouterMask("cpu", driver=library, compute="9.0")
    assert (mask.way, mask.why) == ("nvrtc", "")
    for number in range(12):
        case = case_of(rng, broken=number % 3 == 2)
        said = reference.route(**case)
        loss = torch.tensor([case["loss"]], dtype=torch.int32)
        stacked = torch.stack(
            [case["table"], case["table"] + 1], dim=1
        )  # of two layers: a strided view
        counted = torch.stack([case["counts"], case["counts"] + 1], dim=1)
        given = {**case, "loss": loss, "table": stacked[:, 0], "counts": counted[:, 0]}
        *out, results = mask.route(**given)
        agree(said, (*out, results.tolist()), case)
    with pytest.raises(ValueError, match="contiguous float32"):
        mask.route(**{**given, "logits": torch.zeros(3, 4, dtype=torch.float64)})


def test_without_a_gpu_torch_gives_the_same_answers(rng: random.Random) -> None:
    from dynamo_gpu_ft.kernels.router import RouterMask

    mask = RouterMask("cpu")
    assert mask.way == "torch"
    case = case_of(rng, broken=False)
    loss = torch.tensor([case["loss"]], dtype=torch.int32)
    *out, results = mask.route(**{**case, "loss": loss})
    agree(reference.route(**case), (*out, results.tolist()), case)


@pytest.mark.skipif(TRITON is None, reason="Triton is not there: make beside")
def test_the_triton_version_does_what_the_reference_does(rng: random.Random) -> None:
    program = """
import random, sys, torch
sys.path[:0] = sys.argv[2:]
import conftest  # the kernels of this checkout
from router_cases import agree, case_of
from dynamo_gpu_ft.kernels import router_reference, triton_router
rng = random.Random(int(sys.argv[1]))
for number in range(24):
    case = case_of(rng, broken=number % 3 == 2, small=True)
    said = router_reference.route(**case)
    loss = torch.tensor([case.pop("loss")], dtype=torch.int32)
    *out, results = triton_router.route(loss=loss, **case)
    agree(said, (*out, results.tolist()), case)
print("equal")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(rng.randrange(2**32)), str(HERE.parent), str(HERE), *sys.path, *(TRITON or [])],
        capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr[-3000:]


@pytest.mark.skipif(TRITON is None, reason="Triton is not there: make beside")
def test_tritons_compiler_takes_every_triton_kernel_for_a_gpu(tmp_path: Path) -> None:
    """The interpreter takes what the compiler does not (annotations of arguments, for one); compiling needs no GPU."""
    program = """
import sys
sys.path[:0] = sys.argv[1:]
import conftest  # the kernels of this checkout
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dynamo_gpu_ft.kernels import triton_gather, triton_router
ints = dict.fromkeys(("experts", "topk", "first", "losses", "width", "physical"), "i32")
arrays = dict.fromkeys(("loss", "table", "counts", "logical", "slots"), "*i32")
floats = dict.fromkeys(("logits", "choose", "weights"), "*fp32")
router = {**ints, **arrays, **floats, "alive": "*u8", "results": "*i64"}
pieces = {"pieces": "*i64", "staging": "i64", "staging_bytes": "i64", "error": "*i64", "digests": "*i64"}
kernels = [(triton_gather.move_pieces, pieces, {"gather": gather, "step": 512}) for gather in (False, True)]
kernels += [
    (triton_router.route_token, router, {"sigmoid": sigmoid, "renormalise": norm, "block": 256, "picks": 8})
    for sigmoid in (False, True) for norm in (False, True)
]
for kernel, types, fixed in kernels:
    names = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, names, constexprs=fixed), target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"]
print("compiled")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(HERE.parent), str(HERE), *sys.path, *(TRITON or [])],
        capture_output=True, text=True, timeout=110, check=False,
        env={**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, "TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout == "compiled\n", done.stderr[-3000:]


def plain(logits: list[list[float]], dead: set[int], topk: int = 2, **more: Any) -> Any:
    """One replica per expert e, in slot e; `dead` ones have none."""
    experts = len(logits[0])
    table = torch.arange(experts, dtype=torch.int32).view(1, experts, 1)
    counts = torch.tensor([[0 if e in dead else 1 for e in range(experts)]], dtype=torch.int32)
    return reference.route(torch.tensor(logits), table, counts, 0, topk, experts, **more)


def test_a_dead_expert_is_replaced_by_the_next_best_and_the_weights_still_add_up_to_one() -> None:
    routed = plain([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]], dead={0})
    assert routed.logical.tolist() == [[1, 2], [3, 2]]
    assert torch.allclose(routed.weights.sum(1), torch.ones(2))
    assert routed.weights[0, 0] > routed.weights[0, 1]
    assert (routed.error, routed.affected, routed.replaced) == (0, 1, 1)


def test_nothing_dead_is_the_plain_top_k(rng: random.Random) -> None:
    logits = torch.randn(50, 16, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    routed = plain(logits.tolist(), dead=set(), topk=4)
    top = torch.softmax(logits, 1).topk(4, dim=1)
    assert torch.equal(routed.logical.long(), top.indices)
    shares = top.values / top.values.sum(1, keepdim=True)
    assert torch.allclose(routed.weights, shares)
    assert routed.affected == 0


def test_fewer_live_experts_than_k_is_an_error_and_no_token_is_dropped_silently() -> None:
    routed = plain([[3.0, 2.0, 1.0]], dead={0, 1})
    assert routed.error == reference.FEW_LIVE
    assert routed.logical.tolist() == [[-1, -1]]
    assert routed.weights.tolist() == [[0.0, 0.0]]


def test_replicas_take_turns_and_a_cut_batch_chooses_as_the_whole_one() -> None:
    table = torch.tensor([[[4, 5], [6, -1]]], dtype=torch.int32)
    counts = torch.tensor([[2, 1]], dtype=torch.int32)
    logits = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    whole = reference.route(logits, table, counts, 0, 1, 7)
    assert whole.slots.flatten().tolist() == [4, 5, 4, 5, 4, 5]
    part = reference.route(logits[2:], table, counts, 0, 1, 7, first=2)
    assert torch.equal(part.slots, whole.slots[2:])


def test_images_of_the_router_are_found_apart_from_those_of_the_copies() -> None:
    assert kernels.NAMES == ("gather", "scatter"), "the copy engine takes exactly these"
    assert (kernels.FOLDER / f"{kernels.ROUTER[0]}.cu").exists()
    assert len(kernels.built(kernels.ROUTER)) in (0, 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_nvcc_takes_the_source(tmp_path: Path) -> None:
    done = subprocess.run(
        ["nvcc", "-std=c++17", "-fatbin", "-gencode=arch=compute_90,code=sm_90", "-Werror=all-warnings",
         str(ROOT / "kernels" / "router_mask.cu"), "-o", str(tmp_path / "image")],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"gft_router_mask" in (tmp_path / "image").read_bytes()
