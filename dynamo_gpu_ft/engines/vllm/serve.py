"""`dynamo-gpu-ft serve MODEL [vLLM's own flags]`: vLLM's own OpenAI server on top of the resilient engine client.

All HTTP, templates and tool parsing are vLLM's; only the engine client is ours. Ends with vLLM's exit code, 2 when our
part could not start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from dynamo_gpu_ft.engines.vllm import compat, settings
from dynamo_gpu_ft.engines.vllm.inplace import http
from dynamo_gpu_ft.errors import ConfigError, GpuFtError
from dynamo_gpu_ft.recovery import processes


def run(argv: list[str]) -> int:
    """Serves until a signal ends it. `argv` is MODEL and vLLM's flags, as for `vllm serve`."""
    compat.warn_if_untested()
    processes.adopt_orphans()
    try:
        args = parse(argv)
        asyncio.run(_serve(args))
    except GpuFtError as error:
        print(f"dynamo-gpu-ft serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def parse(argv: list[str]) -> Any:
    """vLLM's own parser; exits like argparse for a bad flag. Adds our connector to the KV transfer settings."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    make_arg_parser, validate, cli_env_setup, _, _ = compat.serve_parts()
    cli_env_setup()
    parser = FlexibleArgumentParser(prog="dynamo-gpu-ft serve")
    args = make_arg_parser(parser).parse_args(argv)
    if getattr(args, "model_tag", None):
        args.model = args.model_tag
    validate(args)
    _refuse_unsupported(args)
    args.middleware = [*(getattr(args, "middleware", None) or []), http.MIDDLEWARE]
    http.keys[:] = [key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]
    return args


def _refuse_unsupported(args: Any) -> None:
    """Flags of `vllm serve` that start something other than one HTTP server with its one engine."""
    wrong = {
        "--api-server-count": (getattr(args, "api_server_count", None) or 1) > 1,
        "--headless": bool(getattr(args, "headless", False)),
        "--grpc": bool(getattr(args, "grpc", False)),
    }
    for flag, given in wrong.items():
        if given:
            raise ConfigError(
                "this flag of vLLM's server is not supported",
                where=flag,
                rule="one HTTP server that starts its one engine itself",
                remedy=f"leave {flag} out; run one `dynamo-gpu-ft serve` per engine",
            )


async def _serve(args: Any) -> None:
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from dynamo_gpu_ft.engines.vllm.client import ResilientLLM

    _, _, _, setup_server, build_and_serve = compat.serve_parts()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    listen_address, sock = setup_server(args, reuse_port=False)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args.kv_transfer_config = KVTransferConfig(
        **settings.with_connector(_as_dict(engine_args.kv_transfer_config))
    )
    vllm_config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    client = ResilientLLM.from_vllm_config(
        vllm_config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )
    try:
        await client.reset_mm_cache()
        shutdown_task = await build_and_serve(client, listen_address, sock, args)
    finally:
        client.shutdown(timeout=vllm_config.shutdown_timeout)
    try:
        await shutdown_task
    finally:
        sock.close()


def _as_dict(transfer: Any) -> dict[str, Any] | None:
    """A `--kv-transfer-config` as plain data, without what vLLM fills in itself."""
    if transfer is None:
        return None
    fields = (
        "kv_connector",
        "kv_connector_module_path",
        "kv_role",
        "kv_connector_extra_config",
        "kv_load_failure_policy",
        "kv_rank",
        "kv_parallel_size",
        "kv_ip",
        "kv_port",
        "kv_buffer_size",
        "kv_buffer_device",
    )
    return {name: getattr(transfer, name) for name in fields if hasattr(transfer, name)}
