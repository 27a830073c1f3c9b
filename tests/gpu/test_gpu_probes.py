"""Probes on a real GPU: what its driver supports, that a healthy one has no failure to tell, and that a look is quick."""

from __future__ import annotations

import time

import pytest

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health.probes.attach import attach
from dynamo_gpu_ft.health.readings import State

pytestmark = pytest.mark.gpu


def test_a_healthy_gpu_is_seen_by_every_probe_it_supports_and_has_no_failure_to_tell() -> None:
    attached, baseline = attach(Config())
    try:
        for gpu, why in enumerate(attached.support()):
            print(f"GPU {gpu}, driver {attached.driver}: " + ", ".join(f"{n}: {w or 'yes'}" for n, w in why.items()))  # fmt: skip
            assert why["gpu_lost"] == why["throttle"] == why["pcie"] == ""
        for found in baseline:
            print(f"already there: {found.probe} {found.state.value}: {found.text}")
        began = time.monotonic()
        later = attached.look()
        print(f"a look took {1e3 * (time.monotonic() - began):.1f} ms")
        assert not [each for each in baseline + later if each.state is State.FAILED and each.probe in ("driver", "gpu_lost")]  # fmt: skip
    finally:
        attached.close()
