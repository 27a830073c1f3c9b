"""The eviction bench compares two orders on the same requests: its rows say which hit rate belongs to which."""

from __future__ import annotations

import pytest

from bench import eviction
from bench.rows import Options


def test_popular_prompts_are_found_more_often_than_under_plain_lru(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eviction, "ONCE", (4,))
    rows = {row.name: row for row in eviction.measure(Options(quick=True, say=lambda line: None))}
    hits = rows["eviction.hits.4_single_per_popular"]
    assert hits.baseline is not None
    assert 100 >= hits.value > hits.baseline
    cost = rows["eviction.cost.4_single_per_popular"]
    assert cost.value > 0
    assert cost.baseline
