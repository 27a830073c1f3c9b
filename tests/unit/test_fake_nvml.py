"""The simulated NVML through NVIDIA's own Python binding: what is set is what is read, in the binding's own structures."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from dynamo_gpu_ft.sim.nvml import build

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (
    "set gpu=1 142=1 143=2 144=1 145=0 3=10 4=20 5=30 6=40 161@3=7 165@3=0 94=5 util.gpu=90 util.memory=12 memory.used=1024",
    "set gpu=1 sram.threshold=1 sram.parity=4 repair.channel=1 clocks.reasons=0x48 fabric.state=2 fabric.health_mask=0x155",
    "set gpu=1 fabric.health_summary=2 temperature=81 230=4 pcie.width=8",
    "process gpu=1 pid=4242 memory=77 gi=1 ci=0",
    "return gpu=2 call=* code=15",
    "return gpu=3 call=nvmlDeviceGetUtilizationRates code=999 count=1",
    "mig gpu=4 gi=2 ci=0 uuid=MIG-x",
)
READER = """
import ctypes, importlib.util, json, sys
spec = importlib.util.spec_from_file_location("pynvml", sys.argv[1])
n = importlib.util.module_from_spec(spec)
sys.modules["pynvml"] = n
spec.loader.exec_module(n)
def error(function, *arguments):
    try:
        function(*arguments)
    except n.NVMLError as why:
        return why.value
    return 0
n.nvmlInit()
out = {"driver": n.nvmlSystemGetDriverVersion(), "count": n.nvmlDeviceGetCount()}
g = n.nvmlDeviceGetHandleByIndex(1)
out["name"], out["uuid"] = n.nvmlDeviceGetName(g), n.nvmlDeviceGetUUID(g)
out["bdf"] = n.nvmlDeviceGetPciInfo(g).busId
out["rows"] = n.nvmlDeviceGetRemappedRows(g)
out["ecc"] = [n.nvmlDeviceGetTotalEccErrors(g, kind, span) for span in (0, 1) for kind in (0, 1)]
out["fields"] = [(v.fieldId, v.nvmlReturn, v.value.ullVal) for v in n.nvmlDeviceGetFieldValues(g, [230, 144, 94, (161, 3), (161, 4), 9999])]
out["links"] = [n.nvmlDeviceGetNvLinkState(g, 3), n.nvmlDeviceGetNvLinkState(g, 4), error(n.nvmlDeviceGetNvLinkState, g, 18)]
out["replay"] = n.nvmlDeviceGetNvLinkErrorCounter(g, 3, n.NVML_NVLINK_ERROR_DL_REPLAY)
use, memory = n.nvmlDeviceGetUtilizationRates(g), n.nvmlDeviceGetMemoryInfo(g)
out["use"] = [use.gpu, use.memory, memory.used, memory.total - memory.free]
out["processes"] = [(p.pid, p.usedGpuMemory, p.gpuInstanceId, p.computeInstanceId) for p in n.nvmlDeviceGetComputeRunningProcesses(g)]
out["clocks"] = n.nvmlDeviceGetCurrentClocksThrottleReasons(g)
out["temperature"] = n.nvmlDeviceGetTemperature(g, 0)
out["pcie"] = [n.nvmlDeviceGetCurrPcieLinkWidth(g), n.nvmlDeviceGetPcieReplayCounter(g)]
if hasattr(n, "c_nvmlGpuFabricInfo_v3_t"):
    info = n.c_nvmlGpuFabricInfo_v3_t()
    n.nvmlDeviceGetGpuFabricInfoV(g, ctypes.byref(info))
    out["fabric"] = [info.state, info.healthMask, info.healthSummary, info.status]
if hasattr(n, "c_nvmlEccSramErrorStatus_v1_t"):
    sram = n.c_nvmlEccSramErrorStatus_v1_t()
    n.nvmlDeviceGetSramEccErrorStatus(g, ctypes.byref(sram))
    out["sram"] = [sram.volatileUncParity, sram.bThresholdExceeded, sram.volatileCor]
if hasattr(n, "nvmlDeviceGetRepairStatus"):
    out["repair"] = n.nvmlDeviceGetRepairStatus(g)
out["lost"] = [error(n.nvmlDeviceGetHandleByIndex, 2), error(n.nvmlDeviceGetHandleByIndex, 0)]
third = n.nvmlDeviceGetHandleByIndex(3)
out["once"] = [error(n.nvmlDeviceGetUtilizationRates, third) for _ in range(2)]
mig = n.nvmlDeviceGetHandleByUUID("MIG-x")
out["mig"] = [n.nvmlDeviceGetGpuInstanceId(mig), n.nvmlDeviceGetIndex(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig))]
out["missing"] = error(n._nvmlGetFunctionPointer, "nvmlDeviceGetNonsense")
n.nvmlShutdown()
out["after"] = error(n.nvmlDeviceGetCount)
print(json.dumps(out))
"""


def binding() -> str:
    """NVIDIA's binding as a file: the installed one, or the copy that vLLM brings along."""
    found = importlib.util.find_spec("pynvml")
    if found is not None and found.origin:
        return found.origin
    vllm = importlib.util.find_spec("vllm")
    copy = Path(vllm.origin or "").parent / "third_party" / "pynvml.py" if vllm else Path()
    if not copy.is_file():
        pytest.skip("neither nvidia-ml-py nor vLLM's copy of it is installed")
    return str(copy)


@pytest.fixture(scope="module")
def read() -> dict[str, Any]:
    with TemporaryDirectory(prefix="gft-nvml-") as folder:
        (Path(folder) / "commands").write_text("\n".join(SCRIPT) + "\n")
        environment = build.environment(build.library(ROOT / "build"), Path(folder))
        done = subprocess.run(
            [sys.executable, "-c", READER, binding()], capture_output=True, text=True, timeout=60, env=os.environ | environment
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("driver", "595.45.04 SIMULATED"),
        ("count", 8),
        ("name", "SIMULATED H100"),
        ("uuid", "GPU-51d0feed-0000-4000-8000-000000000001"),
        ("bdf", "00000000:23:00.0"),
        ("rows", [1, 2, 1, 0]),
        ("ecc", [10, 20, 30, 40]),
        ("fields", [[230, 0, 4], [144, 0, 1], [94, 0, 5], [161, 0, 7], [161, 0, 0], [9999, 3, 0]]),
        ("links", [0, 1, 3]),
        ("replay", 7),
        ("use", [90, 12, 1024, 1024]),
        ("processes", [[4242, 77, 1, 0]]),
        ("clocks", 0x48),
        ("temperature", 81),
        ("pcie", [8, 5]),
        ("fabric", [2, 0x155, 2, 0]),
        ("sram", [4, 1, 0]),
        ("repair", [1, 0]),
        ("lost", [15, 0]),
        ("once", [999, 0]),
        ("mig", [2, 4]),
        ("missing", 13),
        ("after", 1),
    ],
)
def test_what_is_set_is_what_the_binding_reads(read: dict[str, Any], what: str, value: Any) -> None:
    if what not in read:
        pytest.skip("this version of the binding does not have the call")
    assert read[what] == value
