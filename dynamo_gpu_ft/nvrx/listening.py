"""The monitor's ear: a Unix socket in a folder of its own, connections that come and go, packets that may be anybody's.

Only the same user is heard, and only who knows the key of a start that is running; everything else is dropped.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

from dynamo_gpu_ft.nvrx import voices, wire
from dynamo_gpu_ft.nvrx.voices import Voice
from dynamo_gpu_ft.nvrx.wishes import Wish

_MOST = 1024  # connections; more are refused
_PACKETS = 1000  # read from one connection before the others have their turn


class Ear:
    """Never blocks. `descriptors` are to be waited for; `listen` reads whatever is there."""

    def __init__(self, folder: str, on_ask: Callable[[int, Wish, str], None]) -> None:
        """`on_ask(rank, wish, reason)` is called from `listen`. Raises `OSError`."""
        self.path = os.path.join(folder, "monitor")
        self._on_ask = on_ask
        self._keys: dict[str, int] = {}
        self._voices: dict[int, tuple[socket.socket, str, Voice | None]] = {}
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.bind(self.path)
        os.chmod(self.path, 0o600)
        self._server.listen(64)
        self._server.setblocking(False)

    def expect(self, key: str, rank: int) -> None:
        """Hear those who know `key`, as `rank`."""
        self._keys[key] = rank

    def forget(self, key: str) -> None:
        """What this start still says counts for nothing."""
        self._keys.pop(key, None)
        for number, (_, of, _) in list(self._voices.items()):
            if of == key:
                self._drop(number)

    def descriptors(self) -> list[int]:
        return [self._server.fileno(), *self._voices]

    def voices(self) -> list[tuple[str, Voice]]:
        """(key, voice) of everybody who is heard."""
        return [(key, voice) for _, key, voice in self._voices.values() if voice is not None]

    def listen(self, at: float) -> None:
        """Takes in all that has come; `at` is now."""
        while True:
            try:
                made, _ = self._server.accept()
            except OSError:
                break
            made.setblocking(False)
            if len(self._voices) >= _MOST or not _same_user(made):
                made.close()
                continue
            self._voices[made.fileno()] = (made, "", None)
        for number in list(self._voices):
            self._read(number, at)

    def close(self) -> None:
        for number in list(self._voices):
            self._drop(number)
        self._server.close()

    def _read(self, number: int, at: float) -> None:
        for _ in range(_PACKETS):
            channel, key, voice = self._voices[number]
            try:
                data = channel.recv(wire.LONGEST)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            packet = wire.decode(data) if data else None
            if packet is None or packet.key not in self._keys or (key and packet.key != key):
                self._drop(number)  # gone, a stranger, or of a start that is over
                return
            if voice is None:
                if not isinstance(packet, wire.Hello):
                    self._drop(number)
                    return
                made = Voice(rank=self._keys[packet.key], pid=packet.pid, heard=at)
                self._voices[number] = (channel, packet.key, made)
                continue
            voices.hear(voice, packet, at)
            if isinstance(packet, wire.Ask):
                self._on_ask(voice.rank, packet.wish, packet.reason)

    def _drop(self, number: int) -> None:
        self._voices.pop(number)[0].close()


def _same_user(channel: socket.socket) -> bool:
    size = struct.calcsize("3i")
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1]) == os.geteuid()
