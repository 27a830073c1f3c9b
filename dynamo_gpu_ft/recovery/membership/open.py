"""Which membership store a setting means: `file:DIR`, `tcp:HOST:PORT`, `etcd:HOST:PORT`, or nothing for a folder beside the arena.

Called once by whoever leads an engine.
"""

from __future__ import annotations

import os

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.recovery.membership.base import MembershipStore
from dynamo_gpu_ft.recovery.membership.etcd import EtcdStore
from dynamo_gpu_ft.recovery.membership.file import FileStore
from dynamo_gpu_ft.recovery.membership.tcp import TcpStore


def open_store(config: Config, *, deadline_s: float = 5.0) -> MembershipStore:
    """Raises `ConfigError` for a setting that means no store, `StoreUnavailable` for a folder that cannot be made."""
    kind, _, place = config.membership.partition(":")
    if not config.membership:
        return FileStore(os.path.join(config.arena_dir, f"dynamo_gpu_ft-{os.getuid()}.membership"))
    if kind == "file" and place:
        return FileStore(place)
    host, _, port = place.rpartition(":")
    if kind in ("tcp", "etcd") and host and port.isdigit() and 0 < int(port) < 65536:
        store = TcpStore if kind == "tcp" else EtcdStore
        return store(host.strip("[]"), int(port), deadline_s=deadline_s)
    raise ConfigError(
        "configuration key 'membership' names no store",
        value=config.membership,
        rule="file:DIR, tcp:HOST:PORT or etcd:HOST:PORT",
        remedy="leave it out for a folder in arena_dir",
    )
