"""Which NVRx a test runs against: each version that `make beside` made, or the built-in monitor with none."""

from __future__ import annotations

import pytest

from tests.nvrx.harness import folder_of

VERSIONS = ("0.4.1", "0.7.0")


def made_or_skip(version: str) -> str:
    folder = folder_of(version)
    if not (folder / "nvidia_resiliency_ext").is_dir():
        pytest.skip(f"NVRx {version} is not there: make beside")
    return str(folder)


@pytest.fixture(params=VERSIONS)
def nvrx(request: pytest.FixtureRequest) -> str:
    """The folder of one version."""
    return made_or_skip(request.param)
