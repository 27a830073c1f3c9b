"""Where Triton is for the tests that run it in a child: the folder that `make beside` made, or nowhere because it is installed.

`TRITON` is None when there is none; else what is to be added to the child's path.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_BESIDE = Path(sys.prefix).parent / "triton" / "3.5.1"

TRITON: list[str] | None = None
if importlib.util.find_spec("triton") is not None:
    TRITON = []
elif _BESIDE.is_dir():
    TRITON = [str(_BESIDE)]
