"""Our settings inside vLLM's: where the connector's extra configuration is, and adding the connector when it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.plugin import CONNECTOR, MODULE


def transfer_entry(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `--kv-transfer-config` value that switches the connector on."""
    entry: dict[str, Any] = {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
    }
    if extra:
        entry["kv_connector_extra_config"] = dict(extra)
    return entry


def with_connector(existing: Mapping[str, Any] | None) -> dict[str, Any]:
    """`existing` (a `--kv-transfer-config` as a dict, or None) with our connector in it.

    Another connector is kept beside ours under vLLM's MultiConnector, ours first: loads come from the arena if it has
    them. A MultiConnector that already names ours, or ours alone, is returned as it is."""
    if not existing or not existing.get("kv_connector"):
        return transfer_entry()
    if existing["kv_connector"] == CONNECTOR:
        named = {k: v for k, v in existing.items() if v is not None}
        return {"kv_connector_module_path": MODULE, **named}
    extra = dict(existing.get("kv_connector_extra_config") or {})
    if existing["kv_connector"] == "MultiConnector":
        children = list(extra.get("connectors") or [])
        if any(child.get("kv_connector") == CONNECTOR for child in children):
            return dict(existing)
        extra["connectors"] = [transfer_entry(), *children]
        return {
            **existing,
            "kv_connector_extra_config": extra,
            "kv_load_failure_policy": "recompute",
        }
    return {
        "kv_connector": "MultiConnector",
        "kv_role": existing.get("kv_role", "kv_both"),
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [transfer_entry(), dict(existing)]},
    }


def config_of(vllm_config: Any) -> Config:
    """Our `Config` from a VllmConfig: our connector's extra configuration over the environment over the defaults."""
    transfer = vllm_config.kv_transfer_config
    if transfer is None:
        return Config.load()
    if transfer.kv_connector == CONNECTOR:
        return Config.load(transfer.kv_connector_extra_config)
    for child in (transfer.kv_connector_extra_config or {}).get("connectors", ()):
        if child.get("kv_connector") == CONNECTOR:
            return Config.load(child.get("kv_connector_extra_config"))
    return Config.load()
