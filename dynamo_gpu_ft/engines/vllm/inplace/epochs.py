"""The membership store of one vLLM engine, opened by the setting `membership`, and whether this engine may found an epoch in it.

Epochs are those of the arena's name: whoever starts the next engine of that name goes on counting, and puts out who led before. An
engine of the same name that lives is left alone; the one that comes later is not recovered in place then.
"""

from __future__ import annotations

import time

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.recovery.membership.base import Membership, MembershipStore
from dynamo_gpu_ft.recovery.membership.open import open_store
from dynamo_gpu_ft.recovery.processes import Process, lives

#: How long processes of an engine that was ended a moment ago may take to be gone.
ENDING_S = 5.0
_LOOK_S = 0.05


def engine_name(config: Config) -> str:
    """What this engine is called in the store."""
    return config.arena_name


def opened(config: Config) -> MembershipStore:
    """The configured store. Raises `ConfigError` for a setting that means none, `StoreUnavailable` for a folder that cannot be made."""
    return open_store(config, deadline_s=min(5.0, config.step_deadline_s))


def living(membership: Membership | None) -> list[int]:
    """Pids of its members that live on this machine."""
    members = membership.members if membership is not None else ()
    return [m.pid for m in members if lives(Process(m.pid, m.started))]


def taken(store: MembershipStore, engine: str, wait_s: float = ENDING_S) -> str:
    """Why this name is another live engine's, "" when it is free; waits for processes that are ending. Raises `StoreUnavailable`."""
    newest = store.read(engine)
    give_up = time.monotonic() + wait_s
    while pids := living(newest):
        if time.monotonic() > give_up:
            return (
                f"another engine has the arena_name {engine!r}, and its workers (pid {pids[0]}) live: "
                f"give each engine a name of its own (DYN_GPU_FT_ARENA_NAME)"
            )
        time.sleep(_LOOK_S)
    return ""
