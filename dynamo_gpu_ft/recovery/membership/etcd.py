"""`EtcdStore`: memberships as one key for each engine in etcd, over its HTTP gateway. Needs the package etcd3gw.

For engines on machines that have an etcd already, as Dynamo's do. Compare-and-set is one transaction on the key's revision.
"""

from __future__ import annotations

import base64
import threading
import time
from typing import Any

from dynamo_gpu_ft.errors import ConfigError, StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import Membership
from dynamo_gpu_ft.recovery.membership.wire import checked, checked_name, packed, unpacked

PREFIX = "dynamo_gpu_ft/membership/"
POLL_S = 0.05


class EtcdStore:
    """`deadline_s` is the longest wait for etcd's answer. Reads are linearizable: what they give is the newest."""

    def __init__(self, host: str, port: int, *, deadline_s: float = 5.0) -> None:
        try:
            import etcd3gw
            import requests
        except ImportError as error:
            raise ConfigError(
                "memberships cannot be kept in etcd",
                where=f"etcd:{host}:{port}",
                value=str(error),
                rule="the package etcd3gw",
                remedy="pip install etcd3gw, or membership = file:DIR",
            ) from None
        self.address, self.deadline_s = (host, port), deadline_s
        self._errors = (etcd3gw.exceptions.Etcd3Exception, requests.RequestException)
        self._module: Any = etcd3gw
        self._requests: Any = requests
        self._of_thread = threading.local()

    def read(self, engine: str) -> Membership | None:
        found = self._get(checked_name(engine))
        return found[0] if found else None

    def publish(self, membership: Membership) -> bool:
        checked(membership)
        engine = checked_name(membership.engine)
        found = self._get(engine)
        if membership.epoch != (found[0].epoch if found else 0) + 1:
            return False
        key = _coded(self._key(engine))
        # A key that is not there has revision 0.
        compare = {
            "key": key,
            "result": "EQUAL",
            "target": "MOD",
            "mod_revision": found[1] if found else 0,
        }
        put = {"request_put": {"key": key, "value": _coded(packed(membership))}}
        answer = self._call(
            lambda client: client.transaction({"compare": [compare], "success": [put]})
        )
        return bool(answer.get("succeeded", False))

    def wait_past(self, engine: str, epoch: int, timeout_s: float) -> Membership | None:
        end = time.monotonic() + timeout_s
        while True:
            newest = self.read(engine)
            if newest and newest.epoch > epoch:
                return newest
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(POLL_S, left))

    def close(self) -> None:
        client = getattr(self._of_thread, "client", None)
        if client is not None:
            client.session.close()
            del self._of_thread.client

    def _key(self, engine: str) -> bytes:
        return f"{PREFIX}{engine}".encode()

    def _get(self, engine: str) -> tuple[Membership, int] | None:
        """The newest membership and the key's revision."""
        found = self._call(lambda client: client.get(self._key(engine), metadata=True))
        if not found:
            return None
        value, about = found[0]
        where = "etcd {}:{}, key {}".format(*self.address, self._key(engine).decode())
        return unpacked(value, engine, where), int(about["mod_revision"])

    def _call(self, use: Any) -> Any:
        try:
            return use(self._client())
        except (*self._errors, ValueError, KeyError, TypeError) as error:
            said = getattr(error, "detail_text", None) or error
            raise StoreUnavailable(
                "etcd does not answer as it should",
                where="{}:{}".format(*self.address),
                value=f"{type(error).__name__}: {said}",
                rule=f"an answer within {self.deadline_s:g} s, from a cluster with a leader",
                remedy="etcdctl endpoint status, or membership = file:DIR",
            ) from None

    def _client(self) -> Any:
        """One for each thread: its HTTP session is not made for several."""
        client = getattr(self._of_thread, "client", None)
        if client is None:
            session = self._requests.Session()
            session.trust_env = False  # a proxy for the internet is no way to etcd
            host, port = self.address
            client = self._module.Etcd3Client(host, port, timeout=self.deadline_s, session=session)
            self._of_thread.client = client
        return client


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()
