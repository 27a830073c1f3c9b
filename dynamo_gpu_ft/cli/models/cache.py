"""A cache of model folders: each is made once, published whole by a rename, and checked at every use.

The recipes hand in a function that fills a folder; this file decides when it runs and what becomes visible.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import GpuFtError

MANIFEST = "gpu_ft_manifest.json"
LOCK_DEADLINE_S = 900.0  # making the slowest model takes about half a minute


def say(line: str) -> None:
    print(f"[models] {line}", file=sys.stderr, flush=True)


def default_cache_dir() -> Path:
    """The setting `cache`, else the user's cache directory."""
    chosen = Config.load().cache
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dynamo_gpu_ft"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def damage(folder: Path, recipe: str) -> str | None:
    """Why `folder` is not a whole model made by `recipe`; None when it is. Reads every file, changes nothing."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made_by, files = manifest["recipe"], dict(manifest["files"])
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    if made_by != recipe:
        return f"it was made by recipe {made_by!r}, this is {recipe!r}"
    for name, wanted in files.items():
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != wanted:
            return f"{name} has digest {found[:12]}, the manifest says {wanted[:12]}"
    return None


def cached(
    name: str, recipe: str, make: Callable[[Path], None], cache_dir: Path | None = None
) -> Path:
    """The folder of model `name`, made by `make(empty folder)` unless a whole one by the same `recipe` is there.

    Safe between processes: one makes it while the others wait (at most `LOCK_DEADLINE_S`). A reader that already
    opened a damaged folder's files keeps them. Errors: `GpuFtError`, and whatever `make` raises.
    """
    root = (cache_dir or default_cache_dir()) / "models"
    folder = root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpuFtError(
            "the cache of models cannot be made",
            where=str(root),
            value=error.strerror,
            remedy="setting DYN_GPU_FT_CACHE to a writable directory",
        ) from error
    with _locked(root / f".{name}.lock"):
        problem = damage(folder, recipe) if folder.exists() else "it is not there yet"
        if problem is None:
            return folder
        for leftover in root.glob(f".{name}.tmp.*"):  # of a maker that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        say(f"making {name} in {folder}: {problem}")
        started = time.monotonic()
        fresh = root / f".{name}.tmp.{os.getpid()}"
        fresh.mkdir()
        try:
            make(fresh)
            _seal(fresh, recipe)
            _publish(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        say(f"{name} is ready after {time.monotonic() - started:.1f} s")
    return folder


def _seal(folder: Path, recipe: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    record = {
        "recipe": recipe,
        "files": {str(path.relative_to(folder)): file_sha256(path) for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _publish(fresh: Path, folder: Path) -> None:
    """A rename cannot replace a filled directory, so the old one steps aside first; the lock hides the instant between."""
    aside = fresh.with_name(fresh.name + ".old")
    if folder.exists():
        folder.rename(aside)
    fresh.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock that dies with its holder."""
    started = time.monotonic()
    told = False
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - started
                if waited > LOCK_DEADLINE_S:
                    raise GpuFtError(
                        "another process that makes the same model does not end",
                        where=str(path),
                        value=f"waited {waited:.0f} s",
                        rule=f"it may take {LOCK_DEADLINE_S:.0f} s",
                        remedy="ending that process",
                    ) from None
                if waited > 2 and not told:
                    say(f"waiting for another process that makes the same model ({path.name})")
                    told = True
                time.sleep(0.1)
        yield
