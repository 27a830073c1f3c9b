"""The three ends a rank's side can talk to: NVRx's rank monitor, the built-in monitor, nobody. Used on the sending thread only.

Every call returns or raises within its link's deadline; after an error the link is closed and another one is made.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dynamo_gpu_ft.nvrx import wire
from dynamo_gpu_ft.nvrx.look import demand, look_here, missing_of_client
from dynamo_gpu_ft.nvrx.progress import Mirror, Now
from dynamo_gpu_ft.nvrx.wishes import Wish

#: Set by NVRx's launcher in every rank's environment.
NVRX_VARIABLE = "FT_RANK_MONITOR_IPC_SOCKET"
SEND_S = 2.0


class Link(Protocol):
    def tell(self, at: float, now: Now) -> None:
        """Says at most one message about where the rank is at second `at`."""

    def ask(self, wish: Wish, reason: str) -> None:
        """Hands a wish to the launcher."""

    def close(self, *, orderly: bool) -> None:
        """`orderly`: the rank ends on purpose. Never raises."""


class MonitorLink:
    """To the built-in monitor."""

    def __init__(self, path: str, key: str, rank: int) -> None:
        self._key = key
        self._since: tuple[Now, float] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(SEND_S)
            self._socket.connect(path)
            self._send(wire.Hello(key=key, rank=rank, pid=os.getpid()))
        except BaseException:
            self._socket.close()
            raise

    def tell(self, at: float, now: Now) -> None:
        if self._since is None or self._since[0] != now:
            self._since = (now, at)
        self._send(wire.State(key=self._key, section=now.section, since=self._since[1]))

    def ask(self, wish: Wish, reason: str) -> None:
        self._send(wire.Ask(key=self._key, wish=wish, reason=reason[:1000]))

    def close(self, *, orderly: bool) -> None:
        try:
            if orderly:
                self._send(wire.Bye(key=self._key))
        except OSError:
            pass  # the monitor is gone, and we with it
        self._socket.close()

    def _send(self, packet: wire.Packet) -> None:
        self._socket.send(wire.encode(packet))


class NvrxLink:
    """To NVRx's rank monitor, through its own client, with what that client offers."""

    def __init__(self, tolerance: Any) -> None:
        """`tolerance` is the module `nvidia_resiliency_ext.fault_tolerance`, whose client has been looked at. Blocks for the connection."""
        self._tolerance = tolerance
        self._client = tolerance.RankMonitorClient()
        self._client.init_workload_monitoring()
        channel = getattr(self._client, "rank_monitor_socket", None)
        if isinstance(channel, socket.socket):
            channel.settimeout(SEND_S)  # the client itself would wait for ever
        config = getattr(self._client, "cfg", None)
        limit = getattr(config, "rank_heartbeat_timeout", None)
        known = getattr(config, "rank_section_timeouts", None)
        self._mirror = Mirror(
            beat_every_s=min(1.0, limit / 5) if limit else 1.0,
            known=frozenset(known) if isinstance(known, Mapping) else None,
        )

    def tell(self, at: float, now: Now) -> None:
        message = self._mirror.next(at, now)
        if message is None:
            return
        if message.kind == "beat":
            self._client.send_heartbeat()
        elif message.kind == "open":
            self._client.start_section(message.section)
        else:
            self._client.end_section(message.section)

    def ask(self, wish: Wish, reason: str) -> None:
        kind = self._tolerance.WorkloadAction
        action = {
            Wish.CONTINUE: kind.Continue,
            Wish.EXCLUDE_NODE: kind.ExcludeThisNode,
            Wish.DO_NOT_RESTART: kind.ShutdownWorkload,
        }[wish]
        request = self._tolerance.WorkloadControlRequest(action=action, description=reason[:1000])
        self._client.send_workload_control_request(request)

    def close(self, *, orderly: bool) -> None:
        try:
            self._client.shutdown_workload_monitoring()
        except Exception:
            pass  # the other side is gone; the rank's exit is what is seen of it


def opener(environ: Mapping[str, str]) -> Callable[[], Link] | None:
    """How to reach whoever watches this rank; None outside a launcher.

    Under NVRx's launcher this imports its package and compares signatures: raises `NvrxError` that names what is missing."""
    path = environ.get(wire.SOCKET_VARIABLE)
    if path:
        key, rank = environ.get(wire.KEY_VARIABLE, ""), int(environ.get("RANK", "0"))
        return lambda: MonitorLink(path, key, rank)
    if not environ.get(NVRX_VARIABLE):
        return None
    offered = look_here(launcher=False)
    demand(missing_of_client(offered), offered)
    import nvidia_resiliency_ext.fault_tolerance as tolerance

    return lambda: NvrxLink(tolerance)
