"""Runs the router mask on a device: the CUDA kernel through the driver, else Triton, else torch; one call with the same answers.

Made once per process and device; `route` only queues, waits for nothing and may be captured in a CUDA graph. Importing needs no torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Any

from dynamo_gpu_ft.kernels import compile as kernels
from dynamo_gpu_ft.kernels import router_reference

_THREADS = 256


class RouterMask:
    """`way`: "built" or "nvrtc" (the CUDA kernel), "triton", "torch" (waits for the device: not for graphs); `why` the better ones do not work."""

    def __init__(self, device: Any, *, driver: Any = None, compute: str = "") -> None:
        """`driver`: an opened libcuda.so.1, found by itself on a GPU; a context must be current (torch's is)."""
        import torch

        self.device = torch.device(device)
        self._function: Any = None
        self._driver = driver
        self.way, self.why = "torch", "not a GPU"
        if self.device.type == "cuda" or driver is not None:
            self.way, self.why = self._load(compute)

    def _load(self, compute: str) -> tuple[str, str]:
        try:
            if self._driver is None:
                import torch

                torch.cuda.synchronize(self.device)  # makes the context
                self._driver = ctypes.CDLL("libcuda.so.1")
                compute = ".".join(map(str, torch.cuda.get_device_capability(self.device)))
            way, why = kernels.load(self._use, compute, kernels.ROUTER)
        except OSError as error:
            way, why = "none", str(error)
        if way != "none":
            return way, ""
        if importlib.util.find_spec("triton") is not None:
            return "triton", why
        return "torch", f"{why}; triton: not installed"

    def _use(self, images: list[bytes]) -> None:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._must("cuModuleLoadData", ctypes.byref(module), images[0])
        self._must("cuModuleGetFunction", ctypes.byref(function), module, b"gft_router_mask")
        self._function = function

    def _must(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} gave CUresult {code}")

    def route(
        self, logits: Any, table: Any, counts: Any, loss: Any, topk: int, physical: int, *,
        flags: int = router_reference.RENORMALISE, choose: Any = None, alive: Any = None, first: int = 0, results: Any = None,
    ) -> tuple[Any, Any, Any, Any]:  # fmt: skip
        """As `router_reference.route`; `table` and `counts` may be one layer's strided view of the stacks, `loss` is int32 [1] on the device.

        Returns (logical, slots, weights, results); `results` is int64 [3] of (error word, affected, replaced), added to if given."""
        import torch

        tokens = len(logits)
        if results is None:
            results = torch.zeros(3, dtype=torch.int64, device=logits.device)
        if self._function is not None:
            logical = torch.empty((tokens, topk), dtype=torch.int32, device=logits.device)
            slots, weights = (
                torch.empty_like(logical),
                torch.empty_like(logical, dtype=torch.float32),
            )
            if tokens:
                arguments = self._arguments(
                    logits, choose, topk, first, loss, table, counts, physical, alive, flags, logical, slots, weights, results
                )  # fmt: skip
                self._launch(tokens, arguments)
            return logical, slots, weights, results
        if self.way == "triton":
            from dynamo_gpu_ft.kernels import triton_router

            out = triton_router.route(
                logits, table.contiguous(), counts.contiguous(), loss, topk, physical,
                flags=flags, choose=choose, alive=alive, first=first,
            )  # fmt: skip
            said = out[3]
            out = out[:3]
        else:
            routed = router_reference.route(
                logits, table, counts, int(loss), topk, physical, flags=flags, choose=choose, alive=alive, first=first
            )  # fmt: skip
            said, out = (
                torch.tensor(routed[3:], dtype=torch.int64, device=logits.device),
                routed[:3],
            )
        results[0].bitwise_or_(said[0])
        results[1:] += said[1:]
        return (*out, results)

    def _arguments(self, *given: Any) -> list[Any]:
        """The kernel's parameters in its order, each as the type that it has there. Raises `ValueError` for a tensor that it cannot read."""
        logits, choose, topk, first, loss, table, counts, physical, alive, flags, *outputs = given
        tokens, experts = logits.shape
        losses, _, width = table.shape
        for name, tensor, kind in (("logits", logits, "float32"), ("choose", choose, "float32"), ("alive", alive, "uint8"),
                                   ("loss", loss, "int32"), ("table", table[0], "int32"), ("counts", counts[0], "int32")):  # fmt: skip
            if tensor is not None and (
                str(tensor.dtype) != f"torch.{kind}" or not tensor.is_contiguous()
            ):
                raise ValueError(f"the router mask takes {name} as contiguous {kind}, not as {tensor.dtype} with strides {tensor.stride()}")  # fmt: skip
        word, wide = ctypes.c_uint32, ctypes.c_uint64

        def at(tensor: Any) -> Any:
            return wide(0 if tensor is None else tensor.data_ptr())

        return [
            at(logits), at(choose), word(tokens), word(experts), word(topk), word(first), at(loss), word(losses), at(table), at(counts),
            wide(table.stride(0)), wide(counts.stride(0)), word(width), word(physical), at(alive), word(flags),
            *(at(tensor) for tensor in outputs),
        ]  # fmt: skip

    def _launch(self, tokens: int, arguments: list[Any]) -> None:
        pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(a) for a in arguments])
        stream = 0
        if self.device.type == "cuda":
            import torch

            stream = torch.cuda.current_stream(self.device).cuda_stream
        blocks = -(-tokens * 32 // _THREADS)
        self._must(
            "cuLaunchKernel", self._function, blocks, 1, 1, _THREADS, 1, 1, 0, ctypes.c_void_p(stream), pointers, None
        )  # fmt: skip
