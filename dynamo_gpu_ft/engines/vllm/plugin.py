"""The `vllm.general_plugins` entry point: makes the connector known by name in every vLLM process, installs the expert policy if asked.

vLLM calls this unguarded and more than once, so it never raises and can be repeated.
"""

from __future__ import annotations

import logging

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.recovery import processes

CONNECTOR = "GpuFtConnector"
MODULE = "dynamo_gpu_ft.engines.vllm.connector"


def register() -> None:
    """Registers `GpuFtConnector` with vLLM's connector factory; on failure one warning, and vLLM goes on."""
    try:
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        # Runs in EngineCore and in every worker: those of a resilient server end with it, SIGKILL included.
        processes.die_with_parent()
        if CONNECTOR not in KVConnectorFactory._registry:
            KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
        from dynamo_gpu_ft.engines.vllm import vitals

        vitals.install()
    except Exception as error:
        logging.getLogger("dynamo_gpu_ft.engines.vllm").warning(
            "could not register %s or the health hooks with vLLM (%s: %s); name the former with kv_connector_module_path %s",
            CONNECTOR,
            type(error).__name__,
            error,
            MODULE,
        )
    try:
        mode = Config.load().experts
        if mode != "vllm":
            from dynamo_gpu_ft.engines.vllm import experts

            experts.install(mode)
    except Exception as error:
        logging.getLogger("dynamo_gpu_ft.engines.vllm").warning(
            "NOT PROTECTED: vLLM's own policy places the experts; ours could not be installed (%s: %s)",
            type(error).__name__,
            error,
        )
