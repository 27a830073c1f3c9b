"""What CUDA takes of host and device tensors in one operation, and what of it is copied or waited for: rules for `simulated_device`.

Where a rule of CUDA's is not sure, here it is the stricter one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as trees

#: The type of the simulated devices.
TYPE = "lazy"
COPIES = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
#: Operations that take 0-dim host tensors, and in which arguments, beside the element-wise ones of two tensors.
_SCALARS = {
    "aten::where": {"condition", "self", "other"},
    "aten::floor_divide": {"self", "other"},
    **{
        f"aten::{name}": {"value"}
        for name in ("fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_")
    },
}
_PRODUCTS = {f"aten::{name}" for name in ("mm", "bmm", "mv", "dot", "addmm", "addmv", "baddbmm")}
_MASKS = {torch.bool, torch.uint8}


class Given(NamedTuple):
    """One tensor among the arguments of an operation; `written`: it is changed."""

    name: str
    written: bool
    tensor: torch.Tensor

    @property
    def on_host(self) -> bool:
        return bool(self.tensor.device.type != TYPE)


def tensors_of(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Given]:
    """In the order of the operation's schema; those of a list one by one."""
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        for leaf in trees.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                yield Given(argument.name, written, leaf)


def refuse(func: Any, given: list[Given], on: torch.device) -> None:
    """Raises RuntimeError where CUDA does; `on`: the device of the result. NotImplementedError: CUDA does not, but this cannot be simulated."""
    name = func._schema.name
    if torch.Tag.inplace_view in func.tags and name != "aten::detach_":
        raise NotImplementedError(f"{name}: a simulated tensor does not change its shape")
    if name in _PRODUCTS and not given[-1].tensor.is_floating_point():
        raise RuntimeError(f'"{name}_cuda" not implemented for {given[-1].tensor.dtype}')
    devices = {each.tensor.device for each in given}
    if len(devices) < 2 or name in COPIES:
        return
    # The tensor indexed decides where indices may be, otherwise all must be where one is that is not on the host.
    at = on if name in INDEXING else next(d for d in devices if d.type == TYPE)
    strange = [each for each in given if each.tensor.device != at]
    numbers = [e for e in strange if e.tensor.dim() == 0 and e.on_host and not e.written]
    if name in INDEXING:
        taken = [e for e in strange if e.name == "indices" and e.on_host]
        taken += [e for e in strange if e.name == "values" and e.tensor.dim() == 0]
    elif name in _SCALARS:
        taken = [e for e in numbers if e.name in _SCALARS[name]]
    elif torch.Tag.pointwise in func.tags and name != "aten::equal":
        # One of two is taken as a number by the kernel.
        taken = numbers[:1] if len([e for e in given if e.name != "out"]) == 2 else []
    else:
        taken = []
    known = {id(each) for each in taken}
    for each in strange:
        if id(each) in known:
            continue
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(map(str, devices)))}! (when checking {each.name} of {name})"
        )


@dataclass
class Transfers:
    """Copies since the last `reset`, of all threads. `to_host` has every wait for the device: a result whose size is data counts too."""

    to_device: int = 0
    to_device_bytes: int = 0
    to_host: int = 0
    to_host_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def reset(self) -> None:
        with self._lock:
            self.to_device = self.to_device_bytes = self.to_host = self.to_host_bytes = 0

    def up(self, size: int) -> None:
        with self._lock:
            self.to_device, self.to_device_bytes = self.to_device + 1, self.to_device_bytes + size

    def down(self, size: int) -> None:
        with self._lock:
            self.to_host, self.to_host_bytes = self.to_host + 1, self.to_host_bytes + size

    def count(self, func: Any, given: list[Given], on: torch.device, kwargs: Any) -> None:
        """What this operation, which is not refused, copies before it begins or ends."""
        name, host = func._schema.name, on.type != TYPE
        if name in COPIES:
            source = given[-1]
            if host:
                self.down(source.tensor.nbytes)
            elif source.on_host:
                self.up(source.tensor.nbytes)
            return
        for each in given if name in INDEXING else ():
            if host and not each.on_host:
                self.down(each.tensor.nbytes)
            if each.on_host and not host:
                self.up(each.tensor.nbytes)
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        sized = bool(tags & set(func.tags)) and kwargs.get("output_size") is None
        if name in INDEXING:  # a mask becomes a list of indices, but where one number is put
            masks = [e for e in given if e.name == "indices" and e.tensor.dtype in _MASKS]
            put = [e.tensor.numel() for e in given if e.name == "values"]
            sized = bool(masks) and not host and not (len(masks) == 1 and put == [1])
        if sized:
            self.down(given[0].tensor.itemsize)
