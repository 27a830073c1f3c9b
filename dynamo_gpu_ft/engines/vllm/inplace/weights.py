"""What the weights of one rank are, by digest: as they were loaded, and as they lie in memory now.

Every rank takes its `Weighed` at its start; the executor keeps that of each shard as its manifest and compares a replacement's with it
before the replacement serves. vLLM packs the weights of linear layers where nobody can read them any more (oneDNN), so those are taken
down before they are packed, and sounded afterwards: what they make of a known input.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


@dataclass(frozen=True, slots=True)
class Weighed:
    """Name -> digest of its type, shape and bytes, or of what the packed layer of that name answers. Crosses vLLM's queue.

    loaded   every parameter as it came from the checkpoint, before vLLM made its own form of it; empty if that was not seen
    now      every parameter and named buffer as it is in memory
    sounded  every packed layer; comparable between ranks of equal `threads` only, for the order of additions depends on them
    """

    loaded: Mapping[str, bytes] = field(default_factory=dict)
    now: Mapping[str, bytes] = field(default_factory=dict)
    sounded: Mapping[str, bytes] = field(default_factory=dict)
    threads: int = 0
    size: int = 0  # bytes digested
    seconds: float = 0.0  # spent on it, at load and now

    @property
    def tensors(self) -> int:
        return len(self.loaded) + len(self.now) + len(self.sounded)


def differing(manifest: Weighed, found: Weighed) -> list[str]:
    """Names that are not as in the manifest, each once, with how it shows. Pure."""
    kinds = [("loaded", manifest.loaded, found.loaded), ("now", manifest.now, found.now)]
    if manifest.threads == found.threads:
        kinds.append(("packed", manifest.sounded, found.sounded))
    wrong: dict[str, str] = {}
    for kind, wanted, got in kinds:
        for name in sorted(wanted.keys() | got.keys()):
            if wanted.get(name) != got.get(name):
                wrong.setdefault(name, kind)
    return [f"{name} ({kind})" for name, kind in wrong.items()]


class Scale:
    """One rank's. `loading` goes around the load of the model, `weigh` may be called whenever no step runs."""

    def __init__(self) -> None:
        self._loaded: dict[str, bytes] = {}
        self._size, self._seconds = 0, 0.0

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Inside, vLLM's loader shows every model it has filled before it packs its weights."""
        from vllm.model_executor.model_loader import base_loader

        self._loaded, self._size, self._seconds = {}, 0, 0.0
        stock = base_loader.process_weights_after_loading

        def weighed(model: Any, *args: Any, **kwargs: Any) -> None:
            began = time.monotonic()
            found, size = _digests(dict(model.named_parameters()))
            self._loaded.update(found)
            self._size += size
            self._seconds += time.monotonic() - began
            stock(model, *args, **kwargs)

        base_loader.process_weights_after_loading = weighed
        try:
            yield
        finally:
            base_loader.process_weights_after_loading = stock

    def weigh(self, model: Any) -> Weighed:
        """Blocks for about as long as one pass of one token, and a look at every readable byte, take."""
        import torch

        began = time.monotonic()
        now, size = _digests(_readable(model))
        sounded = _soundings(model)
        took = self._seconds + time.monotonic() - began
        return Weighed(
            dict(self._loaded), now, sounded, torch.get_num_threads(), self._size + size, took
        )


def _readable(model: Any) -> dict[str, Any]:
    """Parameters, and buffers but those whose name begins with _: vLLM keeps scales there that change as it runs."""
    buffers = {
        name: tensor
        for name, tensor in model.named_buffers()
        if not name.rpartition(".")[2].startswith("_")
    }
    return dict(model.named_parameters()) | buffers


def _digests(tensors: Mapping[str, Any]) -> tuple[dict[str, bytes], int]:
    """Digest of each tensor's type, shape and bytes, and how many bytes they are."""
    import torch

    from dynamo_gpu_ft import native

    core = native.load()
    found, size = {}, 0
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        about = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        found[name] = core.digest(about + core.digest(memoryview(plain)))
        size += plain.nbytes
    return found, size


def _soundings(model: Any) -> dict[str, bytes]:
    """What each packed linear layer answers to one row of numbers that every type of weight holds exactly."""
    import torch

    from dynamo_gpu_ft import native

    core, found, silent = native.load(), {}, []
    for name, layer in model.named_modules():
        packed, width = getattr(layer, "cpu_linear", None), _width(layer)
        if packed is None or width is None:
            continue
        row = (torch.arange(width) * 37 % 64 + 1).to(layer.weight.dtype).div_(64).reshape(1, -1)
        try:
            with torch.inference_mode():
                answer = packed(row, layer.weight, None)
        except Exception as error:
            silent.append(f"{name}: {type(error).__name__}: {error}")
            continue
        found[name] = core.digest(
            memoryview(answer.contiguous().reshape(-1).view(torch.uint8).numpy())
        )
    if silent:
        _log.warning("%d packed layers cannot be checked, first %s", len(silent), silent[0])
    return found


def _width(layer: Any) -> int | None:
    """Columns of a linear layer's weight on this rank, which its weight does not show once it is packed."""
    for name in ("input_size_per_partition", "input_size", "embedding_dim"):
        width = getattr(layer, name, None)
        if isinstance(width, int):
            return width
    return None
