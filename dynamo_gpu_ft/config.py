"""Every setting of the package: one frozen `Config`, its keys with meaning, unit and default, and how values are read.

Part of the vocabulary, read once at the start of every process and never again. The same key is a name in the engine's own
configuration dict, `DYN_GPU_FT_<KEY>` in the environment and a row of the table in the README; nothing else is a switch.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.units import UnitError, parse

ENV_PREFIX = "DYN_GPU_FT_"
BUILD_PREFIX = ENV_PREFIX + "BUILD_"  # for setup.py; may still be set when the package runs


def _key(
    default: Any, unit: str, doc: str, low: float | None = None, high: float | None = None
) -> Any:
    """A field that carries its row of the table; `unit` picks the parser in `units.parse`."""
    row = {"unit": unit, "doc": doc, "low": low, "high": high, "shown": default}
    value = parse(unit, default) if isinstance(default, str) else default
    return dataclasses.field(default=value, metadata=row)


@dataclass(frozen=True)
class Config:
    """Settings of one process. Sizes are bytes, times are seconds; see each key's row for limits."""

    arena_dir: str = _key("/dev/shm", "path", "folder of the arena file: a memory file system")
    arena_name: str = _key("default", "name", "which arena; each live engine has its own")
    arena_bytes: int = _key("4GiB", "bytes", "room for KV, allocated at start", 1 << 20)
    ledger_bytes: int = _key("64MiB", "bytes", "room of the request ledger", 1 << 16)
    disk_dir: str = _key("", "path", "folder of the disk logs, on a real disk; empty = no disk")
    disk_bytes: int = _key("64GiB", "bytes", "room of each shard's disk log", 16 << 20)
    disk_segment_bytes: int = _key(
        "256MiB", "bytes", "size of a log's files; more for large blocks", 1 << 20
    )
    disk_compress: str = _key("none", "name", "in idle time: none, lz4 or zstd")
    disk_lag_bytes: int = _key("1GiB", "bytes", "sealed bytes that may wait for the disk", 0)
    copy_threads: int = _key(1, "count", "threads that copy and digest, per worker", 1, 64)
    device_timeout_s: float = _key(10.0, "seconds", "longest copy or driver call on a GPU", 0.01)
    device_digest: bool = _key(False, "bool", "digest on the GPU too: finds faults on the way")
    device_rate: int = _key(0, "bytes", "bytes per second that snapshots may copy; 0 = no limit", 0)
    device_slowdown_percent: int = _key(
        3, "count", "longer steps after which snapshots give way; 0 = never", 0, 1000
    )
    max_lag_bytes: int = _key("1GiB", "bytes", "queued bytes after which blocks are dropped", 0)
    load_timeout_s: float = _key(30.0, "seconds", "longest load of KV; then recompute", 0.001)
    restore_by_cost: bool = _key(True, "bool", "compute instead where that proved quicker")
    snapshot: bool = _key(True, "bool", "take KV snapshots at all")
    snapshot_decode: bool = _key(True, "bool", "KV of generated tokens too, not only the prompt's")
    tail_every: int = _key(
        0, "count", "open blocks too, a block's copy every so many tokens; 0 = off", 0
    )
    protected_share: float = _key(0.8, "share", "slots that blocks used twice may keep", 0, 1)
    namespace_quota: float = _key(0.0, "share", "slots this model may have; 0 = no limit", 0, 1)
    pinned_share: float = _key(0.25, "share", "slots that pinned blocks may keep", 0, 0.9)
    pin_ttl_s: float = _key(3600.0, "seconds", "life of a pin without one; 0 = until unpinned", 0)
    recovery_deadline_s: float = _key(300.0, "seconds", "longest recovery; then FAILED", 0.1)
    start_timeout_s: float = _key(600.0, "seconds", "longest start of an engine", 0.1)
    max_restarts: int = _key(
        3, "count", "restarts inside the window, or deaths of a rank; then FAILED", 0, 1000
    )
    restart_window_s: float = _key(600.0, "seconds", "window in which restarts are counted", 0.1)
    in_place: bool = _key(True, "bool", "replace a lost rank in place where the engine can")
    nursery: bool = _key(True, "bool", "fork replacements from a process with the imports done")
    standbys: int = _key(0, "count", "warm standby processes per engine", 0, 1024)
    min_shards: int = _key(0, "count", "fewest ranks to go on with; 0 = never degrade", 0, 65536)
    step_deadline_s: float = _key(30.0, "seconds", "longest step of a recovery in place", 0.01)
    membership: str = _key(
        "", "path", "store of who is in: file:DIR, tcp:HOST:PORT, etcd:HOST:PORT; empty: arena_dir"
    )
    backoff_initial_s: float = _key(0.05, "seconds", "pause before the second restart; doubles", 0)
    backoff_max_s: float = _key(30.0, "seconds", "longest pause between restarts", 0)
    restart_tp: int = _key(0, "count", "tensor-parallel size after a death; 0 = as before", 0, 1024)
    former_keep_s: float = _key(600.0, "seconds", "how long another geometry's KV is kept", 0)
    request_wait_s: float = _key(0.0, "seconds", "longest gap one request may see; 0 = no limit", 0)
    health: bool = _key(True, "bool", "watch GPUs, driver, kernel log and steps")
    health_act: bool = _key(True, "bool", "restart on verdicts; off: only report them")
    health_library: str = _key("libnvidia-ml.so.1", "path", "NVML: another file is a simulated one")
    health_log: str = _key("", "path", "kernel log: a file or pipe; empty: /dev/kmsg; none: no log")
    health_devices: str = _key(
        "", "path", "GPUs by local rank, then spares; empty: CUDA's own: 0,1 or UUIDs"
    )
    health_poll_s: float = _key(0.25, "seconds", "between polls of the driver; 0 = events only", 0)
    hang_after_s: float = _key(0.45, "seconds", "a step hangs so long after its usual time", 0.05)
    hang_floor_s: float = _key(0.5, "seconds", "no step hangs before so long", 0.05)
    hang_unknown_s: float = _key(60.0, "seconds", "limit of steps of a kind not seen yet", 0.1)
    metrics_port: int = _key(0, "port", "metrics port; worker rank r has +1+r; 0 = off", 0, 65535)
    metrics_host: str = _key("127.0.0.1", "host", "address the metrics ports listen on")
    health_port: int = _key(
        0, "port", "port of GET /health/gpu; worker rank r has +1+r; 0 = off", 0, 65535
    )
    health_host: str = _key("127.0.0.1", "host", "address the health port listens on")
    experts: str = _key(
        "vllm", "name", "who places vLLM's experts: instant, refill, vllm; environment only"
    )
    journal: str = _key("", "path", "file that gets every event as a JSON line; empty = none")
    cache: str = _key("", "path", "folder of converted models; empty = ~/.cache/dynamo_gpu_ft")
    health_call_deadline_s: float = _key(2.0, "seconds", "longest driver call of a probe", 0.01)
    takeover: bool = _key(False, "bool", "take the arena from a live but hung owner")

    def __post_init__(self) -> None:
        for key in dataclasses.fields(self):
            low, high, value = key.metadata["low"], key.metadata["high"], getattr(self, key.name)
            if (low is not None and value < low) or (high is not None and value > high):
                raise ConfigError(
                    f"configuration key {key.name!r} is out of range",
                    value=value,
                    rule=f"it must be {_range(low, high)}",
                    remedy=f"leave it out for the default, {key.metadata['shown']!r}",
                )
        if self.backoff_initial_s > self.backoff_max_s:
            raise ConfigError(
                "configuration key 'backoff_initial_s' contradicts 'backoff_max_s'",
                value=(self.backoff_initial_s, self.backoff_max_s),
                rule="the first pause must not be longer than the longest",
                remedy="raise backoff_max_s",
            )

    @property
    def arena_path(self) -> str:
        """The arena's file. Everyone who shares an arena derives its path here."""
        return os.path.join(self.arena_dir, f"dynamo_gpu_ft-{self.arena_name}.arena")

    @classmethod
    def load(
        cls, explicit: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> Config:
        """Reads the keys: `explicit` (an engine's dict) before `environ` (default: the process's) before the defaults.

        An explicit None counts as absent. Raises `ConfigError` for an unknown or malformed key of either source.
        """
        environ = os.environ if environ is None else environ
        from_env = {
            name[len(ENV_PREFIX) :].lower(): (text, f"environment variable {name}")
            for name, text in environ.items()
            if name.startswith(ENV_PREFIX) and not name.startswith(BUILD_PREFIX)
        }
        given = {name: (value, "explicit settings") for name, value in (explicit or {}).items()}
        values: dict[str, Any] = {}
        for name, (value, source) in [*from_env.items(), *given.items()]:
            field = _FIELDS.get(name)
            if field is None:
                raise _unknown(name, source)
            if value is not None:
                values[name] = _read(field, value, source)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for handing the same settings to another process; `load` reads them back."""
        return dataclasses.asdict(self)


_FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field for field in dataclasses.fields(Config)
}


def markdown_table() -> str:
    """The README's table of keys, generated so that it cannot lie."""
    lines = ["| key | unit | default | meaning |", "|---|---|---|---|"]
    for name, field in _FIELDS.items():
        row = field.metadata
        lines.append(
            f"| `{name}` | {row['unit']} | `{_shown_default(row['shown'])}` | {row['doc']} |"
        )
    return "\n".join(lines)


def help_text() -> str:
    """The same table for `--help`, in plain columns."""
    lines = [
        f"settings ({ENV_PREFIX}<KEY> in the environment, <key> in the engine's extra config):"
    ]
    for name, field in _FIELDS.items():
        row = field.metadata
        lines.append(f"  {name:<20} {row['doc']} [{row['unit']}, {_shown_default(row['shown'])}]")
    return "\n".join(lines)


def _read(field: dataclasses.Field[Any], value: Any, source: str) -> Any:
    unit = field.metadata["unit"]
    try:
        return parse(unit, value)
    except UnitError as error:
        raise ConfigError(
            f"configuration key {field.name!r} is malformed",
            where=source,
            value=value,
            rule=str(error),
            remedy=f"a value like {_shown_default(field.metadata['shown'])!r}",
        ) from None


def _unknown(name: str, source: str) -> ConfigError:
    near = difflib.get_close_matches(name.lower(), _FIELDS, n=1, cutoff=0.5)
    return ConfigError(
        "unknown configuration key",
        where=source,
        value=name,
        rule="the keys are listed by `dynamo-gpu-ft --help`",
        remedy=f"{near[0]!r}, the nearest key" if near else "removing it",
    )


def _range(low: float | None, high: float | None) -> str:
    return f"at least {low}" if high is None else f"between {low} and {high}"


def _shown_default(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
