"""Puts packages that tests run against into folders of their own that go on PYTHONPATH, beside the engine's environment, which stays as it is.

Called by the Makefile with the environment's interpreter: one folder per file of pins, named NAME-VERSION. A version that cannot be had here is said and left out; the tests against it
are then skipped.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

DEADLINE_S = 300


def main(folder: Path, pins: list[Path]) -> int:
    for path in pins:
        name, _, version = path.stem.partition("-")
        target, text = folder / name / version, path.read_text()
        stamp = target / ".made"
        key = hashlib.sha256(f"{sys.version_info[:2]} {text}".encode()).hexdigest()
        if stamp.exists() and stamp.read_text() == key:
            continue
        shutil.rmtree(target, ignore_errors=True)
        print(f"==> {name} {version}", flush=True)
        why = install(target, text)
        if why:
            print(f"    cannot be had here, its tests are left out: {why}")
            shutil.rmtree(target, ignore_errors=True)
        else:
            stamp.write_text(key)
    return 0


def install(target: Path, text: str) -> str:
    """Why it failed; empty if it did not. Exactly the pins of `text`, with the flags its line `# pip:` names."""
    lines = [line.strip() for line in text.splitlines()]
    flags = [flag for line in lines if line.startswith("# pip:") for flag in line.split()[2:]]
    wanted = [line for line in lines if line and not line.startswith("#")]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    command += ["--no-deps", "--no-input", "--target", str(target), *flags, *wanted]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"pip took longer than {DEADLINE_S} s"
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else (said or ["pip failed"])[-1]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
