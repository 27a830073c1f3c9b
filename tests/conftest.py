"""What every test may ask for: a seed that is printed and can be set, a clean environment, and skips that say why.

Loaded by pytest before all tests. `GFT_TEST_SEED=<number>` repeats a run's random choices.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def find_kernels_of_this_checkout() -> None:
    """A checkout on the path that is not installed has its kernels beside the package and not inside it."""
    import dynamo_gpu_ft

    folder = ROOT / "kernels"
    if not Path(dynamo_gpu_ft.__file__).is_relative_to(ROOT) or not folder.is_dir():
        return
    name = "dynamo_gpu_ft.kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


find_kernels_of_this_checkout()
SEED = int(os.environ.get("GFT_TEST_SEED") or random.SystemRandom().randrange(2**32))

try:
    import hypothesis
except ImportError:
    pass
else:
    # Machines are shared and slow at times: a late example is no failure. A failing one prints how to repeat it.
    hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("project")


def pytest_report_header() -> str:
    return f"seed: {SEED} (repeat with GFT_TEST_SEED={SEED})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = {
        "gpu": None if Path("/dev/nvidia0").exists() else "no NVIDIA GPU here",
        "engine": None if importlib.util.find_spec("vllm") else "vLLM is not installed here",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random choices that depend on the printed seed and on the test's own name."""
    print(f"seed: {SEED}")
    return random.Random(f"{SEED}:{request.node.nodeid}")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own DYN_GPU_FT_* variables must not decide a test."""
    for name in [name for name in os.environ if name.startswith("DYN_GPU_FT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def many_files() -> Iterator[contextlib.ExitStack]:
    """Open until the stack is closed: whatever is opened meanwhile has a number that select refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"a process may have {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with contextlib.ExitStack() as held:
        for _ in range(1024):
            held.enter_context(open(os.devnull, "rb"))
        yield held
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A fresh folder in a memory file system (or the ordinary temporary folder where there is none), removed afterwards."""
    import shutil
    import tempfile

    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
