"""One line about NVIDIA's resiliency extension, for `doctor`: which version is installed, what it offers, what runs ranks instead.

Run as a module, in a process of its own: the package brings torch with it.
"""

from __future__ import annotations

import sys

from dynamo_gpu_ft.nvrx import look
from dynamo_gpu_ft.nvrx.inprocess.wrapper import lacking

BUILTIN = "the built-in monitor runs ranks, on one node and without restarts in the process"


def offer() -> tuple[bool, str]:
    """(everything we use is offered, words). Imports the package where it is installed."""
    if not look.installed():
        return False, f"not installed: {BUILTIN}"
    offered = look.look_here()
    lacks = {"launcher": look.missing(offered), "in-process wrapper": lacking()}
    words = [
        f"{what} lacks {', '.join(names)}" if names else f"{what} usable"
        for what, names in lacks.items()
    ]
    instead = f"; {BUILTIN}" if lacks["launcher"] else ""
    return not any(lacks.values()), f"{offered.version}: {', '.join(words)}{instead}"


if __name__ == "__main__":
    try:
        good, words = offer()
    except Exception as error:  # of the package's own import as well
        good, words = False, f"cannot be imported ({type(error).__name__}: {error}): {BUILTIN}"
    print(" ".join(words.split()))
    sys.exit(not good)
