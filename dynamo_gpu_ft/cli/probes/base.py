"""One line of the doctor's answer, and what its probes share: remedies, versions, settings, and children that may hang or crash.

Standard library alone, as all of this folder: the doctor answers where nothing else is installed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]  # the checkout, or site-packages
IN_CHECKOUT = (ROOT / "Makefile").exists()
CHILD_S = 15.0


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


def child(command: Sequence[str]) -> tuple[bool, str]:
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


def state_of(good: bool) -> str:
    return "real" if good else "missing"


def make(otherwise: str) -> str:
    return "make env" if IN_CHECKOUT else otherwise


def install(names: str, absent: Sequence[str]) -> str:
    return make(f"pip install {names}") if absent else ""


def version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def setting(key: str, default: Any) -> Any:
    """A configured value; the default when the settings themselves are broken, which is another probe's finding."""
    try:
        from dynamo_gpu_ft.config import Config

        return getattr(Config.load(), key)
    except Exception:
        return default


def gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
