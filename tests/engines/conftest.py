"""Fixtures of the engine tests: the small models, and settings for an arena of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    from dynamo_gpu_ft.cli.models import tiny_llama

    return tiny_llama()


@pytest.fixture
def settings(memory_folder: Path) -> Callable[..., dict[str, Any]]:
    """Settings of an arena in this test's own folder; keyword arguments change or add keys."""

    def make(**changes: Any) -> dict[str, Any]:
        base = {
            "arena_dir": str(memory_folder),
            "arena_bytes": "128MiB",
            "ledger_bytes": "1MiB",
            "restore_by_cost": False,  # what a test expects must not depend on how busy the machine is
        }
        return {**base, **changes}

    return make
