"""Looks at the CUDA driver and at NVML by dlopen and prints one line; run as a file by `doctor`, in a process of its own.

A broken driver can hang or crash whoever calls it: that must be this child and not the doctor. Standard library alone.
"""

from __future__ import annotations

import ctypes
import sys


def look_at_cuda() -> str:
    """GPUs and CUDA version as the driver gives them; OSError when there is none. Makes no context."""
    cuda = _library("libcuda.so.1")
    if status := cuda.cuInit(0):
        raise OSError(f"libcuda.so.1 is there, cuInit says {status}")
    version, count, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(100)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        cuda.cuDeviceGetName(name, len(name), index)
        names.append(name.value.decode(errors="replace"))
    if not names:
        raise OSError("the CUDA driver is there but sees no GPU")
    api = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return f"{len(names)} x {', '.join(sorted(set(names)))}; CUDA {api}"


def look_at_nvml() -> str:
    """Driver version and number of GPUs as NVML gives them; OSError when there is none."""
    nvml = _library("libnvidia-ml.so.1")
    if status := nvml.nvmlInit_v2():
        raise OSError(f"libnvidia-ml.so.1 is there, nvmlInit says {status}")
    text, count = ctypes.create_string_buffer(96), ctypes.c_uint()
    nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    return f"driver {text.value.decode(errors='replace')}, {count.value} GPUs"


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        absent = "No such file" in str(error)
        raise OSError(f"no NVIDIA driver here ({name})" if absent else str(error)) from None


if __name__ == "__main__":
    try:
        print({"cuda": look_at_cuda, "nvml": look_at_nvml}[sys.argv[1]]())
    except OSError as error:
        print(error)
        sys.exit(1)
