"""Layouts as data: every physical order vLLM uses, and what is refused."""

from dataclasses import dataclass
from typing import Any

import pytest

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.geometry import LayerRun, Opaque, ShardLayout
from dynamo_gpu_ft.kv.layout import Facts, describe


@dataclass
class FakeTensor:
    """Shape, strides and address of a tensor: all that a layout looks at."""

    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    address: int = 1 << 20
    itemsize: int = 2
    dtype: str = "bf16"

    def stride(self) -> tuple[int, ...]:
        if self.strides is not None:
            return self.strides
        out, step = [], 1
        for size in reversed(self.shape):
            out.append(step)
            step *= size
        return tuple(reversed(out))

    def element_size(self) -> int:
        return self.itemsize

    def data_ptr(self) -> int:
        return self.address


def test_packed_kv_with_the_block_dimension_first_is_one_region_per_layer() -> None:
    found = describe({"l0": FakeTensor((16, 3, 32, 128))}, 16)
    assert [(r.stride_bytes, r.fragment_bytes) for r in found.regions] == [(24576, 24576)]
    assert found.block_bytes == 3 * 32 * 128 * 2
    assert found.num_blocks == 16


def test_k_and_v_in_two_planes_are_two_regions() -> None:
    found = describe({"l0": FakeTensor((2, 16, 32, 3, 64))}, 16)
    size = 32 * 3 * 64 * 2
    assert [(r.address - (1 << 20), r.fragment_bytes) for r in found.regions] == [
        (0, size),
        (16 * size, size),
    ]


def test_two_blocks_of_packed_kv_are_not_taken_for_two_planes() -> None:
    found = describe({"l0": FakeTensor((2, 3, 32, 128))}, 2)
    assert len(found.regions) == 1


def test_a_permuted_but_dense_block_is_accepted() -> None:
    tensor = FakeTensor((16, 32, 3, 64), strides=(32 * 3 * 64, 64, 32 * 64, 1))
    assert describe({"l0": tensor}, 16).block_bytes == 32 * 3 * 64 * 2


def test_layers_packed_beside_each_other_have_a_wide_stride() -> None:
    one = 32 * 3 * 64
    tensors = {
        f"l{i}": FakeTensor((16, 32, 3, 64), (4 * one, 192, 64, 1), (1 << 20) + i * one * 2)
        for i in range(4)
    }
    found = describe(tensors, 16)
    assert {r.stride_bytes for r in found.regions} == {4 * one * 2}


def test_kernel_blocks_smaller_than_the_managers_are_joined() -> None:
    found = describe({"l0": FakeTensor((64, 3, 32, 128))}, 16)
    assert found.regions[0].fragment_bytes == 4 * 3 * 32 * 128 * 2
    assert found.num_blocks == 16


def test_layers_that_share_storage_count_once() -> None:
    tensor = FakeTensor((16, 3, 32, 128))
    assert len(describe({"a": tensor, "b": tensor}, 16).regions) == 1


def test_a_block_with_holes_is_refused_with_layer_and_rule() -> None:
    with pytest.raises(NotProtected, match="l7.*contiguous"):
        describe({"l7": FakeTensor((16, 32, 64), strides=(8192, 128, 1))}, 16)


def test_a_tensor_without_block_dimension_is_refused() -> None:
    with pytest.raises(NotProtected, match="16 blocks"):
        describe({"l0": FakeTensor((7, 32, 64))}, 16)


def test_the_fingerprint_does_not_depend_on_how_many_blocks_there_are() -> None:
    small = describe({"l0": FakeTensor((16, 3, 32, 128))}, 16).fingerprint
    assert small == describe({"l0": FakeTensor((99, 3, 32, 128))}, 99).fingerprint
    assert small != describe({"l0": FakeTensor((16, 6, 32, 64))}, 16).fingerprint


def facts(**how: Any) -> Facts:
    return Facts(
        **{
            "axes": "BHNC",
            "block_tokens": 32,
            "heads": 6,
            "tp": 2,
            "dtype": "bf16",
            "parts": (("k", 64), ("v", 64)),
            "inner": "rows",
            **how,
        }
    )


def geometry(shape: tuple[int, ...], strides: tuple[int, ...] | None = None, **how: Any) -> Any:
    tensors = {f"l{i}": FakeTensor(shape, strides, (1 + i) << 24) for i in range(2)}
    return describe(tensors, 16, facts(**how)).geometry


def orders(found: Any) -> tuple[str, ...]:
    assert isinstance(found, ShardLayout), found
    return tuple(part.order for part in found.parts)


def test_the_order_of_heads_and_tokens_is_read_from_the_strides() -> None:
    assert orders(geometry((16, 3, 32, 128))) == ("PHNSD", "PHNSD")
    by_token = geometry((16, 3, 32, 128), (3 * 32 * 128, 128, 3 * 128, 1))
    assert orders(by_token) == ("PNHSD", "PNHSD")
    assert by_token.payload_bytes == 2 * 3 * 32 * 128 * 2
    assert by_token.layers == (LayerRun("l{}", 0, 2),)


def test_kernel_blocks_planes_and_latents_are_described() -> None:
    assert geometry((64, 3, 8, 128)).piece_tokens == 8
    planes = geometry((2, 16, 32, 3, 64), axes="SBNHD")
    assert orders(planes) == ("SPNHD", "SPNHD")
    assert orders(geometry((16, 2, 32, 3, 64), axes="BSNHD")) == ("PSNHD", "PSNHD")
    latent = geometry((16, 1, 32, 576), heads=1, parts=(("latent", 576),))
    assert orders(latent) == ("PHND",)
    assert latent.head_range(1) == (0, 1)


def test_an_order_that_only_a_kernel_knows_makes_cells() -> None:
    assert orders(geometry((16, 3, 32, 128), inner="k_columns")) == ("PHSDN", "PHSND")
    cell = geometry((16, 3, 32, 128), inner="cell:kernel.amx")
    assert orders(cell) == ("PHX",)
    assert cell.cell == "kernel.amx"


@pytest.mark.parametrize(
    ("shape", "strides", "how", "reason"),
    [
        ((16, 3, 32, 100), None, {}, "content is not what"),
        ((16, 4, 32, 128), None, {}, "share of the heads"),
        ((16, 3, 16, 128), None, {}, "make up one block"),
        ((16, 3, 32, 128), (3 * 32 * 128, 32 * 128, 1, 32), {}, "lie together"),
        ((16, 3, 32, 128), (3 * 32 * 128, 128, 384, 1), {"inner": "k_columns"}, "not apart"),
        ((16, 3, 32, 128), (3 * 32 * 128, 128, 384, 1), {"inner": "cell:x"}, "not apart"),
        ((16, 3, 32, 128), None, {"inner": "swizzled"}, "swizzled"),
        ((16, 3 * 32, 128), None, {}, "dimensions"),
        ((16, 32, 2, 3, 64), None, {"axes": "BNSHD"}, "interleaved"),
    ],
)
def test_what_cannot_be_known_for_certain_is_opaque_and_still_snapshotted(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, how: dict[str, Any], reason: str
) -> None:
    tensors = {"l0": FakeTensor(shape, strides)}
    found = describe(tensors, 16, facts(**how))
    assert isinstance(found.geometry, Opaque)
    assert reason in found.geometry.why
    assert found.block_bytes > 0


def test_layers_of_another_order_are_opaque() -> None:
    by_token = FakeTensor((16, 3, 32, 128), (3 * 32 * 128, 128, 3 * 128, 1), address=9 << 24)
    mixed = describe({"a": FakeTensor((16, 3, 32, 128)), "b": by_token}, 16, facts())
    assert isinstance(mixed.geometry, Opaque)


@pytest.mark.parametrize(
    "other",
    [
        FakeTensor((16, 3, 32, 64), address=9 << 24),  # another head size
        FakeTensor((16, 3, 32, 128), address=9 << 24, itemsize=4),
        FakeTensor((32, 3, 16, 128), address=9 << 24),  # a group of another block size
        [FakeTensor((16, 4)), FakeTensor((16, 8))],  # state-space state
    ],
)
def test_hybrid_models_are_refused_as_a_whole_with_the_layer(other: Any) -> None:
    with pytest.raises(NotProtected, match="odd"):
        describe({"a": FakeTensor((16, 3, 32, 128)), "odd": other}, 16, facts())
    with pytest.raises(NotProtected, match="odd"):
        describe({"a": FakeTensor((16, 3, 32, 128)), "odd": other}, 16)
