"""Which GPU a vLLM worker computes on, and which GPUs an engine may choose from.

On CUDA torch knows; elsewhere (tests, demonstrations) the setting `health_devices` names one per local rank. A restarted engine gets
its devices by the environment, without those that a verdict has fenced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.recovery.devices import DEVICES_VARIABLE, named_by, names_in
from dynamo_gpu_ft.topology import Device, bdf_of


def names(config: Config, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The GPUs this engine may use, in order; more than it has ranks are spares. () when nobody has named any."""
    environ = os.environ if environ is None else environ
    for text in (
        environ.get(DEVICES_VARIABLE),
        config.health_devices,
        environ.get("CUDA_VISIBLE_DEVICES"),
    ):
        if text:
            return names_in(text)
    return ()


def environment(chosen: tuple[str, ...], config: Config) -> dict[str, str]:
    """What the processes of an engine on the `chosen` devices need; CUDA is told only where CUDA's own names were used."""
    if not chosen:
        return {}
    told = {DEVICES_VARIABLE: ",".join(chosen)}
    if not config.health_devices:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return told


def device_of(worker: Any, config: Config) -> Device:
    """The device of an initialised vLLM worker by all names that can be had; a nameless one when it has none."""
    local = int(getattr(worker, "local_rank", 0))
    device: Any = getattr(worker, "device", None)
    if getattr(device, "type", "") == "cuda":
        return _cuda_device(device.index if device.index is not None else local)
    named = names(config)
    return named_by(named[local]) if local < len(named) else Device()


def _cuda_device(ordinal: int) -> Device:
    """By what the driver says of it: UUID and PCI address. NVML's index is another count and is left out."""
    import torch

    about = torch.cuda.get_device_properties(ordinal)
    uuid = str(getattr(about, "uuid", "") or "")
    parts = [getattr(about, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    numbers = [int(part) for part in parts if part is not None]
    bdf = bdf_of("{:04x}:{:02x}:{:02x}".format(*numbers)) if len(numbers) == 3 else ""
    if uuid and not uuid.startswith(("GPU-", "MIG-")):
        uuid = f"GPU-{uuid}"
    return Device(uuid=uuid, bdf=bdf)
