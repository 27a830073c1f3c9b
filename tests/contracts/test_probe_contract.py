"""The contract of a probe, run against every probe: it raises nothing, changes nothing, keeps nothing, and is never healthy blindly."""

from __future__ import annotations

import copy
import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.health.guard import Guard
from dynamo_gpu_ft.health.probes.attach import PROBES
from dynamo_gpu_ft.health.probes.base import Probe, Seen
from dynamo_gpu_ft.health.probes.nvml import Gpu, open_nvml
from dynamo_gpu_ft.health.readings import Source, State
from dynamo_gpu_ft.topology import Device

DEVICE = Device(index=0, bdf="0000:9b:00", uuid="GPU-0")
CODES = [0, 1, 2, 3, 4, 13, 15, 16, 17, 18, 25, 28, 29, 999, 12345]


class NvmlError(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class Field(SimpleNamespace):
    """A field value of any type with any number in it."""


class Module:
    """Something like nvidia-ml-py that answers whatever `draw` says; remembers which functions were called."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("c_nvml"):
            return self._struct
        if not name.startswith("nvmlDevice") or self._draw(st.integers(0, 9)) == 0:
            raise AttributeError(name)

        def call(_handle: Any, *arguments: Any) -> Any:
            self.called.append(name)
            kind = self._draw(st.sampled_from(["value", "value", "value", "code", "raise"]))
            if kind == "code":
                raise NvmlError(self._draw(st.sampled_from(CODES[1:])))
            if kind == "raise":
                raise self._draw(st.sampled_from([OSError("gone"), ValueError("odd"), NvmlError("text")]))  # fmt: skip
            if name.endswith("FieldValues"):
                return [self._field() for _ in arguments[0]]
            if name.endswith("RemappedRows"):
                return tuple(self._number() for _ in range(4))
            if name.endswith(("RepairStatus", "EccMode")):
                return [self._number(), self._number()]
            return self._number()

        return call

    def _number(self) -> int:
        return self._draw(st.sampled_from([0, 1, 2, 3, 9, 18, 64, 2**32 - 1, 2**64 - 1]))  # type: ignore[no-any-return]

    def _field(self) -> Field:
        number = self._number()
        value = SimpleNamespace(
            dVal=float(number), uiVal=number, ulVal=number, ullVal=number, sllVal=number, siVal=number, usVal=number,
        )  # fmt: skip
        return Field(
            nvmlReturn=self._draw(st.sampled_from(CODES)), valueType=self._draw(st.integers(-1, 9)), value=value,
        )  # fmt: skip

    def _struct(self) -> Any:
        names = (
            "volatileUncParity", "volatileUncSecDed", "bThresholdExceeded", "state", "status", "cliqueId", "healthMask",
            "healthSummary",
        )  # fmt: skip
        kind = type("Struct", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_ulonglong) for n in names]})  # fmt: skip
        return kind(**{name: self._number() for name in names})


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
@given(data=st.data())
def test_whatever_the_driver_answers_a_probe_raises_nothing_and_changes_nothing(
    probe: Probe, data: st.DataObject
) -> None:
    module = Module(data.draw)
    gpu = Gpu(module, DEVICE, object(), Guard(5.0))
    state = copy.deepcopy(vars(probe))
    look = probe.baseline(gpu)
    assert all(each.baseline for each in look.readings)
    for _ in range(2):
        kept = copy.deepcopy(look.now)
        later = probe.look(gpu, look.now)
        assert look.now == kept
        look = later
        for found in look.readings:
            assert (found.probe, found.device, found.source) == (probe.name, DEVICE, Source.NVML_COUNTER)  # fmt: skip
            assert not found.baseline
            assert found.text
    assert isinstance(probe.supported(gpu), str)
    assert vars(probe) == state
    assert all(name.startswith("nvmlDeviceGet") for name in module.called)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_a_device_that_has_nothing_is_not_supported_and_silent(probe: Probe) -> None:
    gpu = Gpu(SimpleNamespace(), DEVICE, object(), Guard(5.0))
    look = probe.baseline(gpu)
    assert look.readings == []
    assert probe.look(gpu, look.now).readings == []
    # Being lost is told by whoever asks; it has no function of its own that could be missing.
    assert probe.supported(gpu) or probe.name == "gpu_lost"


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_what_can_be_read_no_more_is_unknown_and_never_healthy(probe: Probe) -> None:
    def refuse(*_: Any) -> Any:
        raise NvmlError(999)

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return refuse if name.startswith("nvmlDevice") else ctypes.c_uint

    gpu = Gpu(Refusing(), DEVICE, object(), Guard(5.0))
    look = probe.look(gpu, Seen(at=0.0, values=probe.baseline(gpu).now.values))
    assert all(each.state is State.UNKNOWN for each in look.readings)
    assert len(look.readings) == (0 if probe.name == "gpu_lost" else 1)


def test_every_probe_has_a_name_of_its_own_and_the_lost_one_looks_last() -> None:
    names = [probe.name for probe in PROBES]
    assert len(set(names)) == len(names)
    assert names[-1] == "gpu_lost"


def test_a_missing_library_or_binding_is_refused_with_a_remedy() -> None:
    with pytest.raises(NotProtected, match="pip install nvidia-ml-py"):
        open_nvml(1.0, library="/nonexistent/libnvidia-ml.so.1", module=SimpleNamespace())
