"""nvidia-ml-py as the probes use it: calls that never raise, a name or a function that is missing is "not supported".

Between a probe and the guard of its GPU. The module is imported when first opened; importing this file needs no NVML.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, Union

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.health.guard import Guard, Outcome
from dynamo_gpu_ft.topology import Device, bdf_of

OK, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, IS_LOST, RESET_REQUIRED = 0, 2, 3, 6, 15, 16
FUNCTION_NOT_FOUND, DEPRECATED, VERSION_MISMATCH, UNKNOWN = 13, 26, 25, 999
# What a driver or a device that does not have a thing answers; none of them is a fault.
ABSENT = {INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, VERSION_MISMATCH, DEPRECATED}  # fmt: skip
LOST = {IS_LOST, RESET_REQUIRED}
Field = Union[int, tuple[int, int]]
_FIELDS_PER_CALL = 64
# Members of NVML's value union by its type number.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class Answer(NamedTuple):
    """What a call gave: its value, or NVML's code (0: none)."""

    value: Any
    code: int

    @property
    def absent(self) -> bool:
        return self.code in ABSENT


class Gpu:
    """One GPU and how it is asked. `ask` and `fields` belong into the work of its guard: each is one driver call, with its deadline.

    lost  NVML's code (15, 16) if any call since it was last cleared said that the GPU is lost or needs a reset, else 0
    """

    def __init__(self, module: Any, device: Device, handle: Any, guard: Guard) -> None:
        self.module = module
        self.device = device
        self.guard = guard
        self.lost = 0
        self._handle = handle

    def ask(self, name: str, *arguments: Any) -> Answer:
        """Calls `nvmlDevice<name>` of nvidia-ml-py with this GPU's handle. Never raises."""
        function = getattr(self.module, f"nvmlDevice{name}", None)
        if function is None:
            return Answer(None, FUNCTION_NOT_FOUND)
        with self.guard.calling(f"nvmlDevice{name}"):
            answer = _called(self.module, function, self._handle, *arguments)
        if answer.code in LOST:
            self.lost = answer.code
        return answer

    def struct(self, name: str) -> Any:
        """A structure of nvidia-ml-py to be filled in, with a reference to it; None where this version has none."""
        kind = getattr(self.module, name, None)
        return None if kind is None else kind()

    def fill(self, name: str, kind: str) -> Answer:
        """A call that fills a structure in: the structure is the value."""
        made = self.struct(kind)
        if made is None:
            return Answer(None, FUNCTION_NOT_FOUND)
        answer = self.ask(name, ctypes.byref(made))
        return Answer(made if answer.code == OK else None, answer.code)

    def fields(self, wanted: Iterable[Field]) -> dict[Field, Answer]:
        """Values of field ids, or of (field id, link), up to 64 per call. Each has an answer of its own, also when a call fails."""
        asked = list(wanted)
        found: dict[Field, Answer] = {}
        for begin in range(0, len(asked), _FIELDS_PER_CALL):
            part = asked[begin : begin + _FIELDS_PER_CALL]
            whole = self.ask("GetFieldValues", part)
            if whole.code != OK:
                found |= dict.fromkeys(part, Answer(None, whole.code))
                continue
            for field, got in zip(part, whole.value, strict=False):
                found[field] = _value_of(got)
                if found[field].code in LOST:
                    self.lost = found[field].code
        return {field: found.get(field, Answer(None, UNKNOWN)) for field in asked}


def _value_of(got: Any) -> Answer:
    code, kind = int(got.nvmlReturn), int(got.valueType)
    if code != OK:
        return Answer(None, code)
    if not 0 <= kind < len(_MEMBERS):
        return Answer(None, UNKNOWN)
    return Answer(int(getattr(got.value, _MEMBERS[kind])), OK)


def _called(module: Any, function: Any, *arguments: Any) -> Answer:
    try:
        return Answer(function(*arguments), OK)
    except Exception as error:
        # NOTE: nvidia-ml-py raises its own NVMLError with the code in `value`; anything else is a fault of the binding.
        code = getattr(error, "value", UNKNOWN)
        return Answer(None, code if isinstance(code, int) and code else UNKNOWN)


class Nvml:
    """NVML, opened. `driver` is the version of the driver, "" when it does not say."""

    def __init__(self, module: Any, driver: str, deadline_s: float) -> None:
        self.module = module
        self.driver = driver
        self._deadline_s = deadline_s

    def gpus(self, indexes: Iterable[int] | None = None) -> list[Gpu]:
        """The GPUs of these NVML indexes, all when None, each with a guard of its own. One that does not answer has no handle and is
        left out; one that is stuck has a guard that says so. Blocks for a deadline per GPU at most."""
        module, found = self.module, []
        if indexes is None:
            outcome, counted = Guard(self._deadline_s, "count").run(
                lambda: _called(module, module.nvmlDeviceGetCount)
            )
            indexes = range(counted.value or 0) if outcome is Outcome.DONE else ()
        for index in indexes:
            guard = Guard(self._deadline_s, str(index))
            outcome, named = guard.run(partial(_named, module, guard, index))
            if outcome is Outcome.STUCK:
                found.append(Gpu(module, Device(index=index), None, guard))
            elif outcome is Outcome.DONE and named is not None:
                found.append(Gpu(module, named[0], named[1], guard))
        return found

    def close(self) -> None:
        """Gives NVML back. Blocks for a deadline at most."""
        guard = Guard(self._deadline_s, "close")
        guard.run(lambda: _guarded(self.module, guard, "nvmlShutdown"))
        guard.close()


def open_nvml(deadline_s: float, library: str = "", module: Any = None) -> Nvml:
    """Opens NVML through nvidia-ml-py, or through `module`, which is like it.

    library  path of the library; "" is the driver's own, as the loader finds it
    Raises `NotProtected` when nvidia-ml-py or the driver is missing or does not answer within the deadline.
    """
    try:
        module = module or importlib.import_module("pynvml")
        if library:
            # nvidia-ml-py asks the loader for libnvidia-ml.so.1 and gets the one that is loaded under this name already.
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except (ImportError, OSError) as error:
        raise NotProtected(
            "GPUs cannot be probed",
            value=f"{type(error).__name__}: {error}",
            rule="nvidia-ml-py and the driver's libnvidia-ml.so.1 are needed",
            remedy="pip install nvidia-ml-py, and `dynamo-gpu-ft doctor`",
        ) from error
    guard = Guard(deadline_s, "open")
    outcome, opened = guard.run(lambda: _guarded(module, guard, "nvmlInit"))
    if outcome is Outcome.STUCK or opened.code != OK:
        raise NotProtected(
            "GPUs cannot be probed: NVML does not open",
            where="nvmlInit",
            value="no answer in time" if outcome is Outcome.STUCK else f"NVML code {opened.code}",
            remedy="nvidia-smi, and `dynamo-gpu-ft doctor`",
        )
    _, version = guard.run(lambda: _guarded(module, guard, "nvmlSystemGetDriverVersion"))
    guard.close()
    return Nvml(module, _text(version.value) if version is not None else "", deadline_s)


def _guarded(module: Any, guard: Guard, name: str) -> Answer:
    with guard.calling(name):
        return _called(module, getattr(module, name))


def _named(module: Any, guard: Guard, index: int) -> tuple[Device, Any] | None:
    with guard.calling("nvmlDeviceGetHandleByIndex"):
        handle = _called(module, module.nvmlDeviceGetHandleByIndex, index)
    if handle.code != OK:
        return None
    with guard.calling("nvmlDeviceGetUUID"):
        uuid = _called(module, module.nvmlDeviceGetUUID, handle.value)
    with guard.calling("nvmlDeviceGetPciInfo"):
        pci = _called(module, module.nvmlDeviceGetPciInfo, handle.value)
    bdf = bdf_of(_text(getattr(pci.value, "busId", ""))) if pci.code == OK else ""
    return Device(index=index, uuid=_text(uuid.value), bdf=bdf), handle.value


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
