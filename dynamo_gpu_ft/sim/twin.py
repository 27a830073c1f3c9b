"""CPU tensors as the memory of a simulated device, so that the device tier runs without a GPU.

For tests, benches and demos; the product never imports it. The device itself is the native core's twin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv import tuning
from dynamo_gpu_ft.kv.device import OpenDevice


def twin_of(tensors: Iterable[Any], **options: Any) -> OpenDevice:
    """A new simulated device (options: see `Device.twin`) that owns the storage of `tensors`, under its own addresses."""
    device = native.load().Device.twin(**options)
    seen = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            device.twin_adopt(storage.data_ptr(), storage.nbytes())
    device.use_kernels([b"simulated", b"simulated"])
    return OpenDevice(device, "simulated", tuning.DEFAULT, tuning.DEFAULT)
