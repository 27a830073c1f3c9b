"""Liveness and the masks of the communication kernels, on faithful fakes of their calls (simulated: the libraries themselves are not here)."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.experts import masks
from dynamo_gpu_ft.experts.liveness import join


class FakeDeepEp:
    """Simulated: the three mask calls of DeepEP's low-latency buffer, with their parameters and their meaning."""

    def __init__(self, ranks: int) -> None:
        self.mask = [0] * ranks

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        self.mask[rank_to_mask] = int(mask)

    def low_latency_query_mask_buffer(self, mask_status: Any) -> None:
        mask_status.copy_(mask_status.new_tensor(self.mask))

    def low_latency_clean_mask_buffer(self) -> None:
        self.mask = [0] * len(self.mask)


class FakeNixlEp:
    """Simulated: NIXL EP's; ranks that were never connected read -1, and its clean marks all of its capacity active."""

    def __init__(self, capacity: int, connected: int) -> None:
        self.mask = [0] * connected + [-1] * (capacity - connected)

    def update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        self.mask[rank_to_mask] = int(mask)

    def query_mask_buffer(self, mask_status: Any) -> None:
        assert len(mask_status) == len(self.mask)
        mask_status.copy_(mask_status.new_tensor(self.mask))

    def clean_mask_buffer(self) -> None:
        self.mask = [0] * len(self.mask)


NCCL_EP = r"""
#include <string.h>
struct group { int ranks, masking, error, mask[64]; };
typedef struct group *ncclEpGroup_t;
typedef void *cudaStream_t;
struct group *fake_group(int ranks, int masking) {
  static struct group g;
  g.ranks = ranks; g.masking = masking; g.error = 0;
  for (int i = 0; i < ranks; ++i) g.mask[i] = 1;
  return &g;
}
void fake_timeout(ncclEpGroup_t g, int rank) { g->mask[rank] = 0; g->error = 1; }
int ncclEpMaskQuery(ncclEpGroup_t g, int *status, cudaStream_t s) {
  (void)s; if (!g->masking) return 5; memcpy(status, g->mask, sizeof(int) * g->ranks); return 0;
}
int ncclEpMaskUpdate(ncclEpGroup_t g, const int *mask, cudaStream_t s) {
  (void)s; if (!g->masking) return 5; memcpy(g->mask, mask, sizeof(int) * g->ranks); return 0;
}
int ncclEpMaskClean(ncclEpGroup_t g, cudaStream_t s) {
  (void)s; if (!g->masking) return 5; for (int i = 0; i < g->ranks; ++i) g->mask[i] = 1; return 0;
}
int ncclEpGetAsyncError(ncclEpGroup_t g, int *out) { if (!g->masking) return 5; *out = g->error; return 0; }
#ifndef OLD
int ncclEpErrorClear(ncclEpGroup_t g) { if (!g->masking) return 5; g->error = 0; return 0; }
#endif
"""


def fake_nccl_ep(folder: Path, *flags: str) -> ctypes.CDLL:
    """Simulated: a library with the C calls of nccl_ep.h."""
    (folder / "fake.c").write_text(NCCL_EP)
    library = folder / f"fake{len(flags)}.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", *flags, str(folder / "fake.c"), "-o", str(library)],
        check=True, timeout=60,
    )  # fmt: skip
    opened = ctypes.CDLL(str(library))
    opened.fake_group.restype = ctypes.c_void_p
    opened.fake_timeout.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return opened


def test_a_rank_is_alive_if_it_is_a_member_and_neither_condemned_nor_masked() -> None:
    seen = {"deep_ep": {0: "active", 1: "active", 2: "active", 3: "masked", 4: "unknown"}}
    found = join(7, 6, {0, 1, 3, 4, 5}, {1: "gpu 1: uncontained memory error"}, seen)  # type: ignore[arg-type]
    assert found.alive == (0, 4, 5)
    assert found.why == {
        1: "gpu 1: uncontained memory error", 2: "not a member in epoch 7", 3: "masked by deep_ep",
    }  # fmt: skip
    assert found.report == (3,), "membership is told of what only a kernel noticed"
    assert found.mask(6) == [1, 0, 0, 0, 1, 1]
    assert join(8, 2, {0, 1}, {}, {}).alive == (0, 1)


def test_a_mask_alone_never_brings_a_rank_in() -> None:
    assert join(1, 2, {0}, {}, {"nccl_ep": {0: "active", 1: "active"}}).alive == (0,)


def test_deep_ep_is_read_and_pushed() -> None:
    pytest.importorskip("torch")
    fake = FakeDeepEp(4)
    adapter = masks.DeepEpMasks(fake, 4, own=0, device="cpu")
    fake.mask[2] = 1
    assert adapter.query() == {0: "active", 1: "active", 2: "masked", 3: "active"}
    assert adapter.push([0, 1]) == [3]
    assert fake.mask == [0, 0, 1, 1]
    assert adapter.push([1, 2, 3]) == [2, 3]
    assert fake.mask == [0, 0, 0, 0], "itself is never masked"
    fake.mask[1] = 1
    adapter.clean()
    assert fake.mask == [0, 0, 0, 0]


def test_nixl_ep_leaves_ranks_alone_that_were_never_connected() -> None:
    pytest.importorskip("torch")
    fake = FakeNixlEp(capacity=5, connected=3)
    adapter = masks.NixlEpMasks(fake, 5, own=1, device="cpu")
    assert adapter.query()[4] == "unknown"
    assert adapter.push([1, 2, 4]) == [0]
    assert fake.mask == [1, 0, 0, -1, -1]
    adapter.clean()
    assert fake.mask == [0, 0, 0, -1, -1]


def test_nccl_ep_is_read_and_pushed_through_its_c_calls(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    library = fake_nccl_ep(tmp_path)
    group = library.fake_group(3, 1)
    adapter = masks.NcclEpMasks(library, group, 3, own=0, device="cpu")
    assert not adapter.timed_out()
    library.fake_timeout(group, 2)
    assert adapter.timed_out()
    assert adapter.query() == {0: "active", 1: "active", 2: "masked"}
    assert adapter.push([0, 2]) == [1, 2]
    assert adapter.query() == {0: "active", 1: "masked", 2: "active"}
    adapter.clean()
    assert not adapter.timed_out()
    assert set(adapter.query().values()) == {"active"}


def test_a_group_without_masks_says_so(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    library = fake_nccl_ep(tmp_path)
    adapter = masks.NcclEpMasks(library, library.fake_group(3, 0), 3, own=0, device="cpu")
    with pytest.raises(NotProtected, match="ncclResult_t 5.*enable_mask"):
        adapter.query()


def test_a_library_that_lacks_a_call_is_a_clear_error_at_start(tmp_path: Path) -> None:
    library = fake_nccl_ep(tmp_path, "-DOLD")
    with pytest.raises(NotProtected, match="lacks a mask call.*ncclEpErrorClear"):
        masks.NcclEpMasks(library, 0, 3, own=0, device="cpu")


def test_a_changed_signature_is_a_clear_error_at_start() -> None:
    class Changed(FakeDeepEp):
        def low_latency_update_mask_buffer(self, ranks_to_mask: list[int]) -> None:  # type: ignore[override]
            """One call for all ranks."""

    with pytest.raises(NotProtected, match=r"ranks_to_mask.*rank_to_mask, mask=False.*DeepEP"):
        masks.DeepEpMasks(Changed(4), 4, own=0, device="cpu")
    with pytest.raises(NotProtected, match="missing"):
        masks.NixlEpMasks(object(), 4, own=0, device="cpu")
    masks.check("deep_ep", FakeDeepEp(1))
    masks.check("nixl_ep", FakeNixlEp(1, 1))


def test_every_recorded_signature_names_its_source_and_version() -> None:
    recorded = masks.recorded()
    assert set(recorded) == {"deep_ep", "nixl_ep", "nccl_ep"}
    assert all(
        entry["source"] and entry["version"] and entry["calls"] for entry in recorded.values()
    )
    text = Path(masks.__file__).with_name("signatures.json").read_text()
    assert json.loads(text) == recorded
