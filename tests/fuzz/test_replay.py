"""Every committed input of every fuzz target, run once without a fuzzer: what one found stays found.

The fuzzers themselves need clang and atheris: `make fuzz FUZZ_SECONDS=600`.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MOST_BYTES = 200 << 10


def named(variable: str) -> list[str]:
    found = re.search(rf"^{variable} := (.+)$", (HERE / "Makefile").read_text(), re.MULTILINE)
    assert found
    return found[1].split()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("g++") is None, reason="make or g++ is missing"
)
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the programs bring their own runtime")
def test_no_committed_input_crashes_its_program() -> None:
    command = ["make", "-s", f"-j{os.cpu_count()}", "-C", str(HERE), "replay"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = dict(re.findall(r"^(\w+): (\d+) inputs, no crash$", done.stdout, re.MULTILINE))
    assert sorted(counts) == sorted(named("PROGRAMS"))
    assert all(int(count) >= 10 for count in counts.values()), counts


@pytest.mark.parametrize("name", named("SCRIPTS"))
def test_no_committed_input_breaks_its_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "kv_import":
        pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(str(HERE))
    target = importlib.import_module(name)
    target.one_input(b"")
    with tarfile.open(CORPUS / f"{name}.tar.gz") as corpus:
        inputs = [corpus.extractfile(member) for member in corpus if member.isfile()]
        assert len(inputs) >= 10
        for each in inputs:
            assert each is not None
            target.one_input(each.read())


def test_every_target_has_a_corpus_and_the_corpora_are_small() -> None:
    there = {path.name.removesuffix(".tar.gz"): path.stat().st_size for path in CORPUS.iterdir()}
    assert sorted(there) == sorted(named("PROGRAMS") + named("SCRIPTS"))
    assert sum(there.values()) < MOST_BYTES
