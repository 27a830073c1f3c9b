"""The simulated device refuses what CUDA refuses, takes what it takes, and counts what is copied."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from dynamo_gpu_ft.engines.reference.weights import view  # noqa: E402
from tests.engines.simulated_device import SimulatedDevice, SimulatedTensor  # noqa: E402

SAME = r"Expected all tensors to be on the same device|Expected tensor to have \S+ Device"
Operation = Callable[..., Any]


@pytest.fixture
def world() -> Iterator[SimulatedDevice]:
    made = SimulatedDevice()
    with made.here():
        yield made


def tensors() -> tuple[Any, Any, Any, Any]:
    """Host tensors: float [4, 3], another, int64 [4, 3] of indices below 3, 0-dim."""
    one = torch.arange(12, dtype=torch.float32).view(4, 3)
    return one, (one * 5 + 3) % 7, torch.arange(12).view(4, 3) % 3, torch.tensor(2.0)


#: Operations on x, y and i that want all of them in one place.
TOGETHER: dict[str, Operation] = {
    "add": lambda x, y, i: x + y,
    "less": lambda x, y, i: x < y,
    "multiply in place": lambda x, y, i: x.clone().mul_(y),
    "matrix product": lambda x, y, i: x @ y.t(),
    "bmm": lambda x, y, i: torch.bmm(x[None], y.t()[None]),
    "linear": lambda x, y, i: torch.nn.functional.linear(x, y),
    "cat": lambda x, y, i: torch.cat([x, y]),
    "stack": lambda x, y, i: torch.stack((x, y)),
    "where, a value": lambda x, y, i: torch.where(x > 3, x, y),
    "where, the condition": lambda x, y, i: torch.where(y > 3, x, 0.0),
    "masked_fill": lambda x, y, i: x.masked_fill(y > 3, 0.0),
    "masked_select": lambda x, y, i: x.masked_select(y > 3),
    "out": lambda x, y, i: torch.add(x, 1, out=y.clone()),
    "equal": lambda x, y, i: torch.equal(x, y),
    "isin": lambda x, y, i: torch.isin(x, y),
    "searchsorted": lambda x, y, i: torch.searchsorted(x.flatten(), y.flatten()),
    "lerp": lambda x, y, i: torch.lerp(x, y, 0.5),
}
#: And those of x and an index.
INDEXED: dict[str, Operation] = {
    "gather": lambda x, y, i: x.gather(1, i),
    "index_select": lambda x, y, i: x.index_select(0, i[0]),
    "embedding": lambda x, y, i: torch.nn.functional.embedding(i[0], x),
    "take_along_dim": lambda x, y, i: torch.take_along_dim(x, i, 1),
    "scatter_, a number": lambda x, y, i: x.clone().scatter_(1, i, 1.0),
    "scatter_add_": lambda x, y, i: x.clone().scatter_add_(1, i, x),
    "index_add_": lambda x, y, i: x.clone().index_add_(0, i[0], x[:3]),
    "index_copy_": lambda x, y, i: x.clone().index_copy_(0, i[0], x[:3]),
    "repeat_interleave": lambda x, y, i: x.repeat_interleave(i[:, 1], 0),
}


def same(found: Any, wanted: Any) -> bool:
    if isinstance(found, (tuple, list)):
        return all(same(f, w) for f, w in zip(found, wanted, strict=True))
    if not isinstance(wanted, torch.Tensor):
        return bool(found == wanted)
    found = found.cpu()
    return bool(found.dtype == wanted.dtype and torch.equal(found, wanted))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", [*TOGETHER, *INDEXED])
def test_an_operation_wants_its_tensors_in_one_place(
    world: SimulatedDevice, name: str, inference: bool
) -> None:
    operation = (TOGETHER | INDEXED)[name]
    with torch.inference_mode(inference):
        x, y, i, _ = tensors()
        found = operation(*(each.to(world.device) for each in (x, y, i)))
        assert same(found, operation(x, y, i))
        assert not isinstance(found, torch.Tensor) or isinstance(found, SimulatedTensor)
        for on, off in ((world.device, "cpu"), ("cpu", world.device), (world.device, "lazy:1")):
            with pytest.raises(RuntimeError, match=SAME):
                operation(x.to(on), y.to(off), i.to(off))


#: What is refused, of host tensors `h` and device tensors `d`.
ONE_WAY: dict[str, Operation] = {
    "host tensor, device index": lambda h, d: h.x[d.i[0]],
    "host tensor, device mask": lambda h, d: h.x[d.x > 3],
    "put into host, device index": lambda h, d: h.x.__setitem__(d.i[0], 1.0),
    "put host rows into device": lambda h, d: d.x.__setitem__(h.i[0], h.y[:3]),
    "put device rows into host": lambda h, d: h.x.__setitem__(h.i[0], d.y[:3]),
    "host tensor plus device number": lambda h, d: h.x + d.n,
    "host number times device number in place": lambda h, d: h.n.mul_(d.n),
    "host tensor times device number in place": lambda h, d: h.x.mul_(d.n),
    "out is a host number": lambda h, d: torch.add(d.n, 1, out=h.n),
    "matrix product with a host bias": lambda h, d: torch.addmm(h.x[:, :1], d.x, d.y.t()),
    "equal to a host number": lambda h, d: torch.equal(d.n, h.n),
    "two host numbers": lambda h, d: torch.addcmul(d.x, h.n, h.n),
    "stack with a host number": lambda h, d: torch.stack([d.n, h.n]),
    "masked by a host number": lambda h, d: d.x.masked_fill(h.n > 0, 1.0),
}
#: What is taken.
MIXED: dict[str, Operation] = {
    "device and host number": lambda h, d: d.x + h.n,
    "host number and device": lambda h, d: h.n - d.x,
    "compare to host number": lambda h, d: h.n < d.x,
    "masked_fill with host number": lambda h, d: d.x.masked_fill(d.y > 3, h.n),
    "where with host number": lambda h, d: torch.where(d.y > 3, d.x, h.n),
    "fill_ with host number": lambda h, d: d.x.clone().fill_(h.n),
    "host index": lambda h, d: d.x[h.i[0]],
    "host index of two dimensions": lambda h, d: d.x[h.i[0], h.i[1]],
    "list index": lambda h, d: d.x[[0, 2]],
    "host mask": lambda h, d: d.x[h.y > 3],
    "device number as index": lambda h, d: d.x[d.i[1, 1]],
    "to where another is": lambda h, d: h.x.to(d.x),
    "copy_": lambda h, d: torch.zeros_like(d.x).copy_(h.x),
}


def same_on_both(device: Any) -> tuple[Any, Any]:
    host = dict(zip("xyin", tensors(), strict=True))
    there = {name: tensor.to(device) for name, tensor in host.items()}
    return SimpleNamespace(**host), SimpleNamespace(**there)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ONE_WAY)
def test_what_cuda_refuses_in_one_direction_is_refused(
    world: SimulatedDevice, name: str, inference: bool
) -> None:
    with torch.inference_mode(inference):
        host, there = same_on_both(world.device)
        with pytest.raises(RuntimeError, match=SAME):
            ONE_WAY[name](host, there)
        ONE_WAY[name](there, there)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", MIXED)
def test_what_cuda_takes_of_host_tensors_is_taken(
    world: SimulatedDevice, name: str, inference: bool
) -> None:
    with torch.inference_mode(inference):
        host, there = same_on_both(world.device)
        found = MIXED[name](host, there)
        assert isinstance(found, SimulatedTensor)
        assert same(found, MIXED[name](host, host))


#: Of TOGETHER and INDEXED, those of which the model below says something in a torch without CUDA.
MODELLED = sorted(
    {*TOGETHER, *INDEXED}
    - {"bmm", "masked_select", "equal", "index_add_", "index_copy_", "repeat_interleave"}
)


@pytest.mark.parametrize("name", MODELLED)
def test_torchs_own_model_of_cuda_refuses_the_same(name: str) -> None:
    """FakeTensorMode knows devices and no values, and wants no GPU: an opinion that is not ours."""
    with FakeTensorMode():
        x = torch.empty(4, 3, device="cuda")
        with pytest.raises(Exception, match=SAME):
            (TOGETHER | INDEXED)[name](x, torch.empty(4, 3), torch.empty(4, 3, dtype=torch.int64))


@pytest.mark.gpu
def test_cuda_itself_judges_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")
    for operation in (TOGETHER | INDEXED).values():
        for on, off in (("cuda", "cpu"), ("cpu", "cuda")):
            x, y, i, _ = tensors()
            with pytest.raises(RuntimeError):
                operation(x.to(on), y.to(off), i.to(off))
    for refused in ONE_WAY.values():
        with pytest.raises(RuntimeError):
            refused(*same_on_both("cuda"))
    for mixed in MIXED.values():
        host, there = same_on_both("cuda")
        assert same(mixed(host, there), mixed(host, host))


def test_put_by_index_takes_host_indices_and_one_host_number(world: SimulatedDevice) -> None:
    x, y, i, n = tensors()
    device = x.to(world.device)
    for index, value, host_value in (
        (i[0], y[:3].to(world.device), y[:3]),
        (i[0].to(world.device), n, n),
        (y > 3, 7.0, 7.0),
        ([0, 2], n, n),
    ):
        device[index] = value
        x[index.cpu() if isinstance(index, torch.Tensor) else index] = host_value
        assert same(device, x)
    x[i[0]] = n.to(world.device)  # the one way back: a number
    assert x[0].tolist() == [2.0] * 3


def test_another_devices_number_is_no_host_number(world: SimulatedDevice) -> None:
    for at, other in ((world.device, "lazy:1"), ("lazy:1", world.device)):
        one, number = torch.ones(2, device=at), torch.tensor(2.0, device=other)
        with pytest.raises(RuntimeError, match=SAME):
            one + number
        assert (one + number.to(at)).device == one.device
        assert one.copy_(number).tolist() == [2.0, 2.0]


def test_values_come_to_the_host_only_by_asking(world: SimulatedDevice) -> None:
    one = torch.tensor([[1.5, 2.0]], device=world.device)
    assert one.tolist() == [[1.5, 2.0]]
    assert (int(one[0, 1]), bool(one[0, 0]), one[0, 0].item()) == (2, True, 1.5)
    assert f"{one[0, 0]:.2f}" == "1.50"
    assert type(one.cpu()) is type(one.to("cpu")) is torch.Tensor
    assert one.numpy(force=True).tolist() == [[1.5, 2.0]]
    for asked in (one.numpy, one.__array__, lambda: memoryview(one)):
        with pytest.raises(TypeError):
            asked()
    with pytest.raises(RuntimeError):
        one.untyped_storage().data_ptr()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device=world.device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="pinned"):
        torch.empty(2, pin_memory=True, device=world.device)
    with pytest.raises(RuntimeError, match="not implemented"):
        one.int() @ one.int().t()
    assert type(torch.empty(2, pin_memory=True)) is type(torch.ones(2).pin_memory()) is torch.Tensor


def test_addresses_are_aligned_consistent_and_of_no_memory(world: SimulatedDevice) -> None:
    image = torch.empty(4096, dtype=torch.uint8, device=world.device)
    other = torch.empty(5, device=world.device)
    assert image.data_ptr() % 512 == other.data_ptr() % 512 == 0
    assert not image.data_ptr() <= other.data_ptr() < image.data_ptr() + 4096
    part = image[64:576].view(torch.float32).view(8, 16)
    assert part[2, 1:].data_ptr() == image.data_ptr() + 64 + 4 * (2 * 16 + 1)
    assert torch.empty(0, device=world.device).data_ptr() == 0
    seen = view(part)  # as if it were host memory: nothing has read it yet
    assert ctypes.addressof(cast(Any, seen.obj)) == part.data_ptr()
    reads = f"import ctypes; ctypes.string_at({part.data_ptr()}, 1)"
    assert subprocess.run([sys.executable, "-c", reads], timeout=60).returncode == -signal.SIGSEGV


def test_views_and_writes_in_place_are_seen_through_the_base(world: SimulatedDevice) -> None:
    image = torch.zeros(4, 6, dtype=torch.uint8, device=world.device)
    assert image[1, 2].copy_(torch.tensor(9)) is not image
    words = image.view(-1)[8:24].view(torch.float32).view(2, 2)
    words[1] = float("nan")
    words[0].fill_(1.0)
    words[0, 1:].mul_(2)
    assert image.view(-1)[8:16].view(torch.float32).tolist() == [1.0, 2.0]
    assert image.view(-1)[16:].view(torch.float32).isnan().all()
    assert (image[1].copy_(torch.arange(6)))[2].item() == 2
    out = torch.empty(2, 2, device=world.device)
    assert torch.mul(words[:1].expand(2, 2), 3, out=out) is out
    assert out.add_(1) is out
    with torch.inference_mode():
        assert torch.ops.aten.add_.Tensor(out, 1) is out
    assert image.contiguous() is image
    assert out.to(world.device) is out
    shapeless: list[Operation] = [
        lambda: out.t_(),
        lambda: out.resize_(8),
        lambda: torch.cat([out, out], out=torch.empty_like(out[:0])),
    ]
    for changes in shapeless:
        with pytest.raises(NotImplementedError):
            changes()


@pytest.mark.parametrize("inference", [False, True])
def test_all_makers_make_device_tensors_and_inference_mode_holds(
    world: SimulatedDevice, inference: bool
) -> None:
    at = world.device
    kept = torch.zeros(3, device=at)
    with torch.inference_mode(inference):
        x = torch.zeros(2, 3, device=at)
        made = [
            x, torch.empty(2, pin_memory=False, device=at), torch.full((2,), 3, device=at), torch.arange(3, device=at),
            torch.tensor([True], device=at), torch.as_tensor(1.5, device=at), x.new_zeros(2), x.new_tensor([1]),
            torch.zeros_like(x), torch.ones_like(torch.zeros(1), device=at), torch.rand(2, device=at), torch.eye(2, device=at),
            torch.zeros(2).to(at), torch.zeros(2).to(x), torch.zeros(1, device="lazy"), x.float(), x.to(torch.uint8), x[:1],
            x.topk(2).indices, x.softmax(-1), x.argsort(dim=1, stable=True), x.cumsum(0), torch.nn.functional.pad(x, (0, 1)),
            torch.frombuffer(bytearray(8), dtype=torch.uint8).to(at), *x.unbind(), *x.sort(), x.nonzero(), x.clone(), x.any(),
        ]  # fmt: skip
        assert [t for t in made if not isinstance(t, SimulatedTensor) or t.device != at] == []
        assert type(torch.zeros_like(x, device="cpu")) is torch.Tensor
        assert {t.is_inference() for t in made} == {inference}
        kept[1:].add_(1)
    assert not kept[1:].add_(1).is_inference()
    assert kept.tolist() == [0, 2, 2]
    if inference:
        with pytest.raises(RuntimeError, match="inference"):
            x.add_(1)


def test_threads_are_simulated_when_they_say_so(world: SimulatedDevice) -> None:
    shared, found = torch.zeros(4, device=world.device), list[Any]()

    def inside() -> None:
        shared[1:3] = torch.tensor([1.0, 2.0], device=world.device)

    def outside() -> None:  # operations go on; nothing new can be made
        found.append((shared + 1).sum())
        refused: list[Operation] = [
            lambda: shared + torch.ones(4),
            lambda: torch.ones(4, device=world.device),
        ]
        for wrong in refused:
            try:
                wrong()
            except RuntimeError as error:
                found.append(error)

    for thread in (world.thread(inside), threading.Thread(target=outside)):
        thread.start()
        thread.join(60)
    total, *errors = found
    assert shared.tolist() == [0, 1, 2, 0]
    assert total.item() == 7
    assert len(errors) == 2


def test_transfers_are_counted_each_way(world: SimulatedDevice) -> None:
    at, seen = world.device, world.transfers

    def cost(act: Callable[[], Any]) -> tuple[int, int, int, int]:
        seen.reset()
        act()
        return seen.to_device, seen.to_device_bytes, seen.to_host, seen.to_host_bytes

    x, host = torch.ones(4, 3, device=at), torch.ones(4, 3)
    costs: list[tuple[Operation, tuple[int, int, int, int]]] = [
        (lambda: host.to(at), (1, 48, 0, 0)),
        (lambda: torch.tensor([1, 2], device=at), (1, 16, 0, 0)),
        (lambda: x[1].copy_(host[1]), (1, 12, 0, 0)),
        (lambda: x[torch.tensor([1, 2])], (1, 16, 0, 0)),
        (lambda: x.cpu(), (0, 0, 1, 48)),
        (lambda: x.tolist(), (0, 0, 1, 48)),
        (lambda: host[0].copy_(x[0]), (0, 0, 1, 12)),
        (lambda: int(x.sum()), (0, 0, 1, 4)),
        (lambda: bool((x > 0).all()), (0, 0, 1, 1)),
        (lambda: x[x > 0], (0, 0, 1, 4)),
        (lambda: x.nonzero(), (0, 0, 1, 4)),
        (lambda: x.__setitem__(x > 2, x[:1, 0]), (0, 0, 0, 0)),
        (lambda: (x.zero_() + 1).masked_fill(x > 0, 2.0), (0, 0, 0, 0)),
        (lambda: x.__setitem__(slice(1, None), float("nan")), (0, 0, 0, 0)),
        (lambda: repr(x), (0, 0, 0, 0)),
    ]
    for act, wanted in costs:
        assert cost(act) == wanted
