"""safetensors files of raw payloads: written tensor by tensor from bytes, read back as bytes. The package is an optional extra.

Used by `export` and `import` only. Needs neither torch nor numpy, so any element type travels.
"""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.errors import GpuFtError, PortableError

#: One file is read as a whole.
MAX_FILE_BYTES = 4 << 30


def library() -> Any:
    """The safetensors package. Raises `PortableError` with the command that installs it."""
    try:
        import safetensors
    except ImportError as error:
        raise PortableError(
            "safetensors is not installed",
            where="export and import",
            value=str(error),
            rule="it is an optional extra",
            remedy="pip install 'dynamo-gpu-ft[portable]'",
        ) from error
    return safetensors


def write(
    path: Path,
    tensors: Mapping[str, bytearray],
    dtype: str,
    shape: Sequence[int],
    metadata: Mapping[str, str],
) -> None:
    """Writes equal-shaped tensors. Raises `PortableError` when the file system refuses."""
    found = library()
    specs: dict[str, Any] = {}
    for name, data in tensors.items():
        if hasattr(found, "TensorSpec"):  # 0.8 and later take addresses
            address = ctypes.addressof(ctypes.c_char.from_buffer(data))
            specs[name] = found.TensorSpec(
                dtype=dtype, shape=list(shape), data_ptr=address, data_len=len(data)
            )
        else:
            specs[name] = {"dtype": dtype, "shape": list(shape), "data": bytes(data)}
    try:
        found.serialize_file(specs, str(path), dict(metadata))
    except (OSError, found.SafetensorError) as error:
        raise _failed(path, error, "room and the right to write there") from error


def bytes_of(path: Path) -> bytes:
    """What is in a file that is one: a pipe would wait for a writer, a device may never end. Raises `OSError` or `ValueError`."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_FILE_BYTES:
        raise ValueError(f"{status.st_size} bytes, mode {stat.filemode(status.st_mode)}")
    return path.read_bytes()


def read(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a file. Raises `PortableError` for a file that is none."""
    found = library()
    try:
        tensors = found.deserialize(bytes_of(path))
    except (OSError, ValueError, MemoryError, found.SafetensorError) as error:
        raise _failed(
            path, error, f"a safetensors file of at most {MAX_FILE_BYTES} bytes"
        ) from error
    return {str(name): bytes(tensor["data"]) for name, tensor in tensors}


def _failed(path: Path, error: Exception, rule: str) -> GpuFtError:
    return PortableError(
        "a tensor file cannot be used",
        where=path.name if path.name.isprintable() else ascii(path.name),
        value=str(error),
        rule=rule,
        remedy="export again to an empty folder",
    )
