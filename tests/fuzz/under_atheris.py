"""Runs a Python fuzz target under atheris: `FUZZ_TARGET=name python under_atheris.py [libFuzzer options] CORPUS`.

The package is imported instrumented, so that the fuzzer sees which branches an input takes. NOTE: the target is no argument,
because libFuzzer starts itself again with its own ones when it merges.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import atheris

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(
        include=["dynamo_gpu_ft", "json", "hostile_json", os.environ["FUZZ_TARGET"]]
    ):
        target = importlib.import_module(os.environ["FUZZ_TARGET"])
    atheris.Setup(sys.argv, target.one_input)
    atheris.Fuzz()
