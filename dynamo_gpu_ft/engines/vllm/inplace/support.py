"""Whether one lost worker of a vLLM engine can be replaced in place; decided once, at start, as a whole.

What is refused here is recovered by restarting the whole engine, as before.
"""

from __future__ import annotations

from typing import Any

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.engines.vllm.plugin import CONNECTOR

WORKER = "dynamo_gpu_ft.engines.vllm.inplace.worker.InPlaceWorker"
SCHEDULER = "dynamo_gpu_ft.engines.vllm.inplace.scheduler.InPlaceScheduler"
EXECUTOR = "dynamo_gpu_ft.engines.vllm.inplace.executor.InPlaceExecutor"
STOCK_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"


def why_not(vllm_config: Any, config: Config, *, platform: str) -> str:
    """Why this engine cannot be recovered in place, "" when it can. `platform`: vLLM's device type. Pure."""
    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    model, transfer = vllm_config.model_config, vllm_config.kv_transfer_config
    if not config.in_place:
        return "in_place is off"
    if parallel.tensor_parallel_size < 2:
        return "tensor_parallel_size is 1: there is no other worker to keep"
    for name in (
        "pipeline_parallel_size",
        "data_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
        "nnodes",
    ):
        if getattr(parallel, name, 1) > 1:
            return f"{name} is {getattr(parallel, name)}, 1 is supported"
    cases = {
        f"the platform is {platform}: collectives and captured graphs of GPUs cannot be rebuilt yet": platform
        != "cpu",
        "expert parallelism is on": bool(getattr(parallel, "enable_expert_parallel", False)),
        "elastic expert parallelism is on": bool(getattr(parallel, "enable_elastic_ep", False)),
        "asynchronous scheduling is on": bool(scheduler.async_scheduling),
        "speculative decoding is on": vllm_config.speculative_config is not None,
        "adapters (LoRA) are on": vllm_config.lora_config is not None,
        "the model takes images, audio or video": bool(
            getattr(model, "is_multimodal_model", False)
        ),
        "the model does not generate": getattr(model, "runner_type", "generate") != "generate",
        "the model runner is V2": compat.uses_v2_runner(vllm_config),
        "prefix caching is off": not vllm_config.cache_config.enable_prefix_caching,
        "the scheduler is one of your own": scheduler.scheduler_cls
        not in (None, SCHEDULER, compat.STOCK_SCHEDULER),
        "the worker class is one of your own": parallel.worker_cls
        not in ("auto", STOCK_WORKER, WORKER),
        "another KV connector is configured": transfer is not None
        and transfer.kv_connector not in (None, CONNECTOR),
    }
    return next((reason for reason, true in cases.items() if true), "")


def why_not_cache(kv_cache_configs: Any) -> str:
    """The same for what is known only once the KV cache is laid out."""
    groups = {len(config.kv_cache_groups) for config in kv_cache_configs}
    if groups != {1}:
        return f"the model has {max(groups)} KV cache groups, 1 is supported"
    return ""
