"""Layouts as data: every physical order vLLM uses, and what is refused."""

from dataclasses import dataclass

import pytest

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.layout import describe


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
