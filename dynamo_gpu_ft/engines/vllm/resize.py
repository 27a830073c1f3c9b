"""The same engine over another number of GPUs: what changes in vLLM's configuration when its tensor-parallel size does.

Used for the engine that is started after a death, when fewer (or again more) devices are to be used than before.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from dynamo_gpu_ft.errors import ConfigError


def with_tensor_parallel(vllm_config: Any, size: int) -> tuple[Any, type[Any]]:
    """A copy of `vllm_config` for `size` ranks, and the executor class that runs it.

    Raises `ConfigError` when vLLM says that the model cannot be split that way."""
    from vllm.v1.executor.abstract import Executor

    config = copy.deepcopy(vllm_config)
    backend = config.parallel_config.distributed_executor_backend
    if backend == "uni" and size > 1:
        backend = "mp"  # vLLM's own choice for several ranks on one host
    try:
        config.parallel_config = dataclasses.replace(
            config.parallel_config, tensor_parallel_size=size, distributed_executor_backend=backend
        )
        config.model_config.verify_with_parallel_config(config.parallel_config)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            "this model cannot be split over this many ranks",
            where="restart_tp",
            value=size,
            rule=str(error),
            remedy="a divisor of the tensor-parallel size in use, or a multiple of it",
        ) from error
    return config, Executor.get_class(config)
