"""The reference engine under a launcher: it mends the loss of one rank itself, the launcher mends the loss of the engine."""

from pathlib import Path

import pytest

from tests.engines.reference_world import greedy_of_transformers, tiny_mixtral
from tests.nvrx import harness, reference_rank
from tests.nvrx.conftest import made_or_skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = Path(reference_rank.__file__)


@pytest.mark.parametrize("backend", ["builtin", pytest.param("0.4.1", marks=pytest.mark.long)])
def test_an_engine_mends_a_rank_in_place_and_its_launcher_mends_the_engine(
    backend: str, tmp_path: Path
) -> None:
    version = "" if backend == "builtin" else made_or_skip(backend)
    model = tiny_mixtral(tmp_path / "model")
    report = tmp_path / "run" / "report"
    report.parent.mkdir()
    options = ["--backend", "nvrx" if version else "builtin", "--stop", "5"]
    ended = harness.launch(options, SCRIPT, report, str(model), version=version)
    assert ended.status == 0, ended.said[-4000:]
    wanted = greedy_of_transformers(model, reference_rank.PROMPT, reference_rank.TOKENS)
    tokens = [word for _, _, word in ended.lines if word.startswith("tokens=")]
    assert tokens == ["tokens=" + ",".join(map(str, wanted))]
    assert ended.who("recovered") == {(0, 0)}
    assert {round_ for round_, _, _ in ended.lines} == {0, 1}
    assert harness.alive(ended.pids()) == []
