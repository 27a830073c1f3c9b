"""A process with the simulated NVML in it, for the tests of the probes: attaches, looks when told to, answers with JSON lines.

Child of `test_probes.py`. In a process of its own because a library stays loaded under NVML's name for as long as the process lives.
Arguments: the library, the deadline, the lines that script the machine. Every line on stdin is one request.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import msgspec

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health.probes.attach import attach


def main(path: str, deadline: str, *script: str) -> None:
    command = ctypes.CDLL(path).fakeNvmlCommand
    answer = ctypes.create_string_buffer(65536)

    def fake(line: str) -> None:
        if command(line.encode(), answer, len(answer)):
            raise SystemExit(f"{line}: {answer.value.decode()}")

    for line in script:
        fake(line)
    attached, found = attach(Config(health_call_deadline_s=float(deadline)), library=path)
    say({"driver": attached.driver, "readings": msgspec.to_builtins(found)})
    for request in sys.stdin:
        word, _, rest = request.strip().partition(" ")
        if word == "look":
            began = time.monotonic()
            found = attached.look()
            say({"readings": msgspec.to_builtins(found), "took": time.monotonic() - began})
        elif word == "support":
            say({"support": attached.support()})
        elif word == "close":
            attached.close()
            say({})
        else:
            fake(rest)
            say({})


def say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
