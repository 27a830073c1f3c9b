"""A torch device that is not there: tensors of `SimulatedDevice` count as a GPU's, and what would raise on a GPU raises.

Each wraps a CPU tensor that only the operations of torch reach. Operations take no mixture of host and device but what CUDA takes, `numpy`
raises, addresses are of memory that nobody has, and copies between host and device are counted. Its type is "lazy", the one that a build
without GPUs can both create and index. Not simulated: streams, graphs, asynchrony, `torch.cuda`, kernels' own order of adding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engines.simulated_rules import COPIES, INDEXING, TYPE, Transfers, refuse, tensors_of

#: No process on x86-64 or arm64 has this mapped: an address that is read or written as one of the host's ends in SIGSEGV.
_NOWHERE = 1 << 62 | 1 << 54


class SimulatedTensor(torch.Tensor):  # type: ignore[misc]
    """`inner`: the CPU tensor; views of this one wrap views of it. Tests may look at it, what they test must not."""

    inner: torch.Tensor
    world: SimulatedDevice
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device, world: SimulatedDevice) -> Any:
        with torch.inference_mode(inner.is_inference()):
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=device,
                storage_size=inner.untyped_storage().nbytes(),
            )  # fmt: skip
        made.inner, made.world = inner, world
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """In threads that are not `here`: operations are the same, only nothing can be made with `device=`."""
        leaves = trees.tree_leaves((args, kwargs))
        world = next(leaf.world for leaf in leaves if isinstance(leaf, SimulatedTensor))
        return world.run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        """Aligned to 512 bytes where the storage begins, different for all that is alive; no memory is there."""
        if not self.inner.data_ptr():
            return 0
        begin = self.inner.untyped_storage().data_ptr()
        return int(_NOWHERE + begin * 8 + self.inner.data_ptr() - begin)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.device}: {self.inner!r}"  # uncounted: it is for who reads a failed test

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("simulated tensors are not pickled")


class _Here(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self, world: SimulatedDevice) -> None:
        super().__init__()
        self._world, self._lifted = world, False

    def __enter__(self) -> Any:
        # torch.tensor(…, device=) then makes a host tensor and copies it, as for a GPU. A setting of this thread.
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._world.run(func, args, kwargs or {})


class SimulatedDevice:
    """`device` is the first of as many as anybody names, lazy:0, lazy:1 …, each as strange to the others as to the host."""

    def __init__(self) -> None:
        self.device = torch.device(TYPE, 0)
        self.transfers = Transfers()

    def here(self) -> Any:
        """A context for this thread alone: what is made with `device=` in it is simulated."""
        return _Here(self)

    def thread(self, target: Callable[..., None], *args: Any) -> threading.Thread:
        """A thread, not started, that runs `target(*args)` `here`."""

        def run() -> None:
            with self.here():
                target(*args)

        return threading.Thread(target=run)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation. Raises RuntimeError for a mixture that CUDA does not take."""
        name, given, kwargs = func._schema.name, list(tensors_of(func, args, kwargs)), {**kwargs}
        own = [each.tensor for each in given if isinstance(each.tensor, SimulatedTensor)]
        asked = [e for e in trees.tree_leaves((args, kwargs)) if isinstance(e, torch.device)]
        on = _device_of_result(name, [each.tensor for each in given], own, asked)
        if kwargs.pop("pin_memory", None) or name == "aten::_pin_memory":
            if on.type == TYPE:
                raise RuntimeError("Only dense CPU tensors can be pinned")
            if name == "aten::_pin_memory":  # nothing here could pin it
                return args[0].clone()
        if not own and on.type != TYPE:
            return func(*args, **kwargs)
        # What is made of other operations comes in those, in inference mode as outside of it.
        with self.here():
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        refuse(func, given, on)
        if on.type == TYPE:
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
        self.transfers.count(func, given, on, kwargs)

        def outward(found: torch.Tensor) -> torch.Tensor:  # torch itself returns what is written to
            return SimulatedTensor(found, on, self) if on.type == TYPE else found

        args, kwargs = trees.tree_map_only(SimulatedTensor, lambda each: each.inner, (args, kwargs))
        results = trees.tree_map_only(torch.Tensor, outward, func(*args, **kwargs))
        if any(each.shape != each.inner.shape for each in own):
            raise NotImplementedError(f"{name}: a simulated tensor does not change its shape")
        return results


def _device_of_result(
    name: str, given: list[torch.Tensor], own: list[torch.Tensor], asked: list[torch.device]
) -> torch.device:
    if asked:
        return torch.device(TYPE, asked[0].index or 0) if asked[0].type == TYPE else asked[0]
    if name in INDEXING or name in COPIES:
        return given[0].device
    return own[0].device if own else torch.device("cpu")
