"""One line about whether the kernel's log and the driver's tracepoints can be followed here, for `doctor`; run as a module, in a
process of its own. What it cannot read it names with what mends it, behind a bar.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config


def look(log: str, tracefs: str = "") -> tuple[bool, str, str]:
    """(the log can be read, what can be read and what not, what mends it). Reads nothing, changes nothing."""
    core = native.load()

    def refused(attempt: Callable[[], None]) -> tuple[str, str]:
        try:
            attempt()
        except core.CoreError as error:
            said, _, remedy = str(error).partition("; ")
            return said, remedy
        return "", ""

    off = log == "none"
    said, mends = ("switched off", "") if off else refused(lambda: core.log_readable(log))
    traces, mends_traces = refused(lambda: core.trace_readable(tracefs))
    words = f"kernel log: {said or log + ' can be read'}; tracepoints: {traces or 'can be read'}"
    return not said, words, "; ".join(each for each in (mends, mends_traces) if each)


if __name__ == "__main__":
    try:
        good, words, remedy = look(getattr(Config.load(), "health_log", "") or "/dev/kmsg")
    except Exception as error:
        good, words, remedy = False, str(error).split(";")[0], ""
    print(f"{words} | {remedy}" if remedy else words)
    sys.exit(not good)
