"""Generated loads are what their recipe says, everywhere the same; recorded ones are counted right, and lying files are refused."""

import json
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import trace_files
from dynamo_gpu_ft.experts.traces import Recipe, apportion, loads, windows

numpy = pytest.importorskip("numpy")


def test_every_layer_of_every_kind_sums_up_to_its_tokens() -> None:
    for kind in ("zipf", "khot", "flat"):
        recipe = Recipe(layers=3, experts=40, tokens=1003, kind=kind, drift=50)
        for window in windows(recipe, 3):
            assert [sum(row) for row in window] == [1003] * 3
            assert min(min(row) for row in window) >= 0


def test_zipf_falls_as_its_exponent_says_and_k_hot_takes_its_share() -> None:
    row = sorted(loads(Recipe(layers=1, experts=64, tokens=10**9, alpha="1.0"))[0], reverse=True)
    assert row[0] / row[9] == pytest.approx(10, rel=1e-6)
    hot = sorted(loads(Recipe(layers=1, kind="khot", tokens=10**6))[0], reverse=True)
    assert sum(hot[:32]) == 900_000
    assert hot[0] - hot[31] <= 1


def test_a_seed_means_these_very_loads() -> None:
    # Written down: a change of these numbers is a change of every figure that was measured with them.
    assert loads(Recipe(layers=2, experts=8, tokens=1000, seed=7)) == GOLDEN


def test_loads_do_not_depend_on_hash_seed_or_optimisation() -> None:
    code = "from dynamo_gpu_ft.experts.traces import *; print(loads(Recipe(layers=2, experts=8, tokens=1000, seed=7)))"
    for seed, flags in (("0", []), ("1", ["-O"]), ("77", ["-OO"])):
        answer = subprocess.run(
            [sys.executable, *flags, "-c", code],
            capture_output=True, text=True, timeout=60, check=True, env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert answer.stdout.strip() == str(GOLDEN)


def test_correlated_layers_share_their_order_and_drift_changes_as_much_as_asked() -> None:
    same = loads(Recipe(layers=4, experts=64, correlated=100))
    assert all(row == same[0] for row in same)
    own = loads(Recipe(layers=4, experts=64))
    assert all(row != own[0] for row in own[1:])
    still = list(windows(Recipe(layers=2, experts=100), 2))
    assert still[0] == still[1]
    old, new = windows(Recipe(layers=1, experts=100, drift=20), 2)
    assert 0 < sum(a != b for a, b in zip(old[0], new[0], strict=True)) <= 20


def test_a_recipe_that_cannot_be_is_refused_with_the_rule() -> None:
    for wrong in ({"alpha": "x"}, {"alpha": "9"}, {"layers": 0}, {"drift": 101}, {"tokens": -1}):
        with pytest.raises(PlacementError, match="between"):
            Recipe(**wrong)
    with pytest.raises(PlacementError, match="hot lies between 1 and 8"):
        Recipe(kind="khot", experts=8, hot=9)


def test_what_rounding_leaves_goes_to_the_largest_remainders() -> None:
    assert apportion([1, 1, 1], 5) == [2, 2, 1]
    assert apportion([5, 3, 2], 7) == [4, 2, 1]


def test_routed_experts_of_vllm_are_counted_per_layer(tmp_path: Path) -> None:
    ids = numpy.array([[[0, 1], [2, 3]], [[0, 2], [3, 2]]], dtype=numpy.int16)
    numpy.save(tmp_path / "a.npy", ids)
    assert trace_files.read(tmp_path / "a.npy") == [[2, 1, 1, 0], [0, 0, 2, 2]]
    assert trace_files.read(tmp_path / "a.npy", experts=5)[0] == [2, 1, 1, 0, 0]
    numpy.save(tmp_path / "b.npy", ids)
    assert trace_files.read(tmp_path) == [[4, 2, 2, 0], [0, 0, 4, 4]]


def test_safetensors_hold_routed_experts_or_the_labels_of_commitmoe(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.numpy").save_file
    save({"routed_experts": numpy.zeros((3, 2, 1), numpy.int16)}, tmp_path / "r.safetensors")
    assert trace_files.read(tmp_path / "r.safetensors") == [[3], [3]]
    labels = {
        "top_indices": numpy.array([[0, 1], [1, 2], [1, 0]], numpy.int32),
        "layer": numpy.array([0, 1, 1], numpy.int32),
        "prompt_idx": numpy.zeros(3, numpy.int32),
    }
    (tmp_path / "labels").mkdir()
    save(labels, tmp_path / "labels" / "part_0.safetensors")
    assert trace_files.read(tmp_path / "labels") == [[1, 1, 0], [1, 2, 1]]


def test_recorder_dumps_of_sglang_are_summed_over_passes_and_never_unpickled(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    count = torch.tensor([[[1, 2]], [[3, 4]]])
    torch.save({"rank": 0, "logical_count": count}, tmp_path / "a.pt")
    assert trace_files.read(tmp_path / "a.pt") == [[4, 6]]
    mark = tmp_path / "ran"
    (tmp_path / "b.pt").write_bytes(pickle.dumps(_Evil(str(mark))))
    with pytest.raises(PlacementError, match=r"b\.pt"):
        trace_files.read(tmp_path / "b.pt")
    numpy.save(tmp_path / "c.npy", numpy.array([_Evil(str(mark))], dtype=object), allow_pickle=True)
    with pytest.raises(PlacementError, match=r"c\.npy"):
        trace_files.read(tmp_path / "c.npy")
    assert not mark.exists()


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_layers_of_flame_moe_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow by its recorded calls: `ParquetFile(path).iter_batches(columns=[...])`, `column(0).flatten().to_numpy(...)`."""
    rows = {"layer_02.parquet": [[[5, 1], [1, 0]], [[1, 1]]], "layer_03.parquet": [[[2, 0]]]}

    class ParquetFile:
        def __init__(self, path: Path) -> None:
            self.batches = rows[path.name]

        def iter_batches(self, columns: list[str]) -> list[types.SimpleNamespace]:
            assert columns == ["indices"]
            return [types.SimpleNamespace(column=lambda _, b=b: _Column(b)) for b in self.batches]

    class _Column:
        def __init__(self, batch: list[list[int]]) -> None:
            self.batch = batch

        def flatten(self) -> "_Column":
            return self

        def to_numpy(self, *, zero_copy_only: bool) -> object:
            return numpy.array(self.batch, dtype=numpy.int16).ravel()

    fake = types.ModuleType("pyarrow.parquet")
    fake.ParquetFile = ParquetFile  # type: ignore[attr-defined]
    package = types.ModuleType("pyarrow")
    package.parquet = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
    for name in rows:
        (tmp_path / name).touch()
    assert trace_files.read(tmp_path) == [[1, 4, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0]]
    (tmp_path / "other.parquet").touch()
    with pytest.raises(PlacementError, match="layer_NN"):
        trace_files.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "a readable file"),
        ("{}", "`loads` or `logical_count`"),
        ("[]", r"\[layers\]\[experts\]"),
        ("[[]]", r"\[layers\]\[experts\]"),
        ("[[1, 2], [1]]", "layer 1 has as many experts"),
        ("[[1, -2]]", "layer 0, expert 1"),
        ("[[1, 2.5]]", "layer 0, expert 1"),
        ("[[true]]", "layer 0, expert 0"),
        ("[[1e300]]", "whole number"),
        ("[[[1]], [[1, 2]]]", "as in the files before it"),
    ],
)
def test_loads_that_lie_are_refused(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(PlacementError, match=rule):
        trace_files.read(file)


def test_ids_outside_the_experts_and_wrong_shapes_are_refused(tmp_path: Path) -> None:
    for name, ids, experts, rule in (
        ("neg", numpy.full((1, 1, 1), -1, numpy.int16), None, "from 0 to"),
        ("high", numpy.full((1, 1, 1), 8, numpy.int16), 8, "from 0 to 7"),
        ("flat", numpy.zeros(4, numpy.int16), None, "tokens, layers, top_k"),
        ("float", numpy.zeros((1, 1, 1)), None, "integers"),
        ("none", numpy.zeros((0, 1, 1), numpy.int16), None, "some"),
    ):
        numpy.save(tmp_path / f"{name}.npy", ids)
        with pytest.raises(PlacementError, match=rule):
            trace_files.read(tmp_path / f"{name}.npy", experts=experts)
    (tmp_path / "good.json").write_text(json.dumps({"loads": [[1, 2]]}))
    assert trace_files.read(tmp_path / "good.json") == [[1, 2]]
    with pytest.raises(PlacementError, match="3 experts, as asked for"):
        trace_files.read(tmp_path / "good.json", experts=3)
    with pytest.raises(PlacementError, match="one kind of"):
        trace_files.read(tmp_path)


GOLDEN = [[79, 168, 73, 111, 254, 131, 97, 87], [87, 254, 131, 111, 73, 79, 97, 168]]
