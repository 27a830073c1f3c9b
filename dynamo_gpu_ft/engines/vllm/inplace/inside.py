"""The parts of vLLM's inside that a worker touches for a recovery in place: groups, queues, its runner, the connector.

One small function per part, so that what has to be read again for another version of vLLM is in one place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any


def worker_process() -> Any:
    """The class that runs one worker: its queues and its loop."""
    from vllm.v1.executor.multiproc_executor import WorkerProc

    return WorkerProc


# -- groups ------------------------------------------------------------------------------------------------------------


def shared_memory_group() -> tuple[str, int] | None:
    """(name, size) of the tensor-parallel group whose collectives spin in shared memory; None without one."""
    from vllm.distributed import parallel_state

    group = parallel_state._TP
    communicator = getattr(group, "device_communicator", None)
    module = getattr(communicator, "dist_module", None)
    name = getattr(module, "group_name", None)
    return (str(name), int(group.world_size)) if name is not None else None


def without_shared_memory(rank: int) -> None:
    """Groups made from now on use torch's communicator: vLLM takes shared memory only where all ranks agree on its name."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    stock = _CPUSHMDistributed.make_group_name
    _CPUSHMDistributed.make_group_name = staticmethod(
        lambda communicator: f"{stock(communicator)}-of-{rank}"
    )


def leave_groups() -> None:
    """Destroys every communicator of this process. Blocks for a moment with a peer that is gone."""
    from vllm.distributed import parallel_state

    try:
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()
    finally:
        parallel_state._TP = parallel_state._WORLD = None
        # NOTE: names carry a counter per process; a newcomer begins at 0, and groups of different names do not meet.
        parallel_state._group_name_counter.clear()


def join_groups(worker: Any, init_method: str, timeout_s: float) -> None:
    """As the worker's own start does. Afterwards the groups' time limit is what the configuration says again."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_worker import init_worker_distributed_environment

    parallel = worker.vllm_config.parallel_config
    os.environ["VLLM_DIST_IDENT"] = os.path.basename(init_method.removeprefix("file://"))
    configured = parallel.distributed_timeout_seconds
    parallel.distributed_timeout_seconds = max(1, int(timeout_s))
    try:
        init_worker_distributed_environment(
            worker.vllm_config,
            worker.rank,
            init_method,
            worker.local_rank,
            current_platform.dist_backend,
        )
    finally:
        parallel.distributed_timeout_seconds = configured
    c10d = torch.distributed.distributed_c10d
    usual = timedelta(seconds=configured) if configured is not None else c10d.default_pg_timeout
    for group in list(c10d._world.pg_map):
        with contextlib.suppress(RuntimeError):
            c10d._set_pg_timeout(usual, group)


# -- queues ------------------------------------------------------------------------------------------------------------


def reader_of(handle: Any, rank: int) -> Any:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    return MessageQueue.create_from_handle(handle, rank)


def reader_is_ready(reader: Any, wait_ms: int) -> bool:
    """Whether the writer has opened the queue for its readers; waits for that up to `wait_ms`. Once True, do not ask again."""
    if not reader.local_socket.poll(timeout=wait_ms):
        return False
    return bool(reader.local_socket.recv() == b"READY")


def new_writer(readers: int, chunk_bytes: int) -> Any:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    return MessageQueue(readers, readers, max_chunk_bytes=chunk_bytes)


def has_subscriber(writer: Any, wait_ms: int) -> bool:
    """Whether one more reader has come; call until all have, then `open_writer`."""
    if not writer.local_socket.poll(timeout=wait_ms):
        return False
    writer.local_socket.recv()
    return True


def segments_of(queue: Any) -> set[str]:
    """Names of the shared memory of a queue that its maker lives to remove."""
    buffer = getattr(queue, "buffer", None)
    return {str(buffer.shared_memory.name).lstrip("/")} if buffer is not None else set()


def retire(queue: Any) -> None:
    """Closes a queue's sockets before it is dropped. May be repeated.

    NOTE: a queue that Python's collector finds in a cycle ends in its ZeroMQ context's end, which waits for its open sockets, for
    ever, on whatever thread is running (0.31; 0.32 closes them itself)."""
    spin = getattr(queue, "_spin_condition", None)
    names = ("local_notify_socket", "read_cancel_socket", "write_cancel_socket")
    sockets = [queue.local_socket, queue.remote_socket]
    sockets += [getattr(spin, name, None) for name in names]
    held = [socket for socket in sockets if socket is not None]
    contexts = {id(socket.context): socket.context for socket in held}
    for socket in held:
        socket.close(linger=0)
    for context in contexts.values():
        context.term()


def open_writer(writer: Any) -> None:
    writer.local_socket.send(b"READY")


# -- the model runner (V1) -----------------------------------------------------------------------------------------------


def forget_step(runner: Any) -> None:
    """A step that was begun and will not be sampled."""
    runner.execute_model_state = None
    if getattr(runner, "kv_connector_output", None) is not None:
        runner.kv_connector_output = None


def clear_requests(runner: Any) -> None:
    batch = runner.input_batch
    for request_id in list(batch.req_id_to_index):
        batch.remove_request(request_id)
    batch.condense()
    batch.refresh_metadata()
    runner.requests.clear()
    runner.num_prompt_logprobs.clear()
    runner.execute_model_state = None


def add_request_state(runner: Any, request: Any, generator: Any) -> None:
    """What the runner makes of a new request, without blocks: they come when it is resumed."""
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    runner.requests[request.request_id] = CachedRequestState(
        req_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        mm_features=[],
        sampling_params=request.sampling,
        generator=generator,
        block_ids=([],),
        num_computed_tokens=0,
        output_token_ids=list(request.output_token_ids),
        lora_request=request.lora,
        prompt_embeds=request.prompt_embeds,
        prompt_is_token_ids=request.prompt_is_token_ids,
    )
    wanted = getattr(request.sampling, "prompt_logprobs", None)
    if wanted is not None and not request.output_token_ids:
        vocabulary = runner.input_batch.vocab_size
        runner.num_prompt_logprobs[request.request_id] = vocabulary if wanted == -1 else wanted


def is_seeded(sampling: Any) -> bool:
    from vllm.sampling_params import SamplingType

    return sampling is not None and sampling.sampling_type == SamplingType.RANDOM_SEED


# -- the connector ---------------------------------------------------------------------------------------------------------


def our_worker_connector() -> Any:
    """Our connector's worker object in this process, None without it."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    from dynamo_gpu_ft.engines.vllm.connector import GpuFtConnector

    found = get_kv_transfer_group() if has_kv_transfer_group() else None
    return found if isinstance(found, GpuFtConnector) else None


@contextlib.contextmanager
def without_engine_id_broadcast() -> Iterator[None]:
    """The connector is made without asking the other ranks for the engine's name: a replacement has it from the executor,
    and the others are not there to answer."""
    from vllm.distributed.kv_transfer import kv_transfer_state as state

    name = "_sync_engine_id_across_tp"
    stock = getattr(state, name, None)
    if stock is None:
        yield
        return
    setattr(state, name, lambda vllm_config: None)
    try:
        yield
    finally:
        setattr(state, name, stock)


# -- the scheduler -----------------------------------------------------------------------------------------------------------


def end_transfers(scheduler: Any) -> None:
    """Loads under way count as failed, blocks that wait for their last copy are freed: no rank will report either any more."""
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import RequestStatus

    if scheduler.connector is None:
        return
    scheduler.connector.members_lost()
    requests = list(scheduler.requests.values())
    loading = {
        request.request_id
        for request in requests
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
    }
    finished = {request.request_id for request in requests if request.is_finished()}
    if loading:
        scheduler._handle_failed_recving(loading)
    if loading or finished:
        ended = KVConnectorOutput(finished_sending=finished, finished_recving=loading)
        scheduler._update_from_kv_xfer_finished(ended)


def forget_transfers(aggregator: Any) -> None:
    """Which ranks have reported what: none has."""
    if aggregator is not None:
        aggregator._recv_remaining_count.clear()
        aggregator._send_remaining_count.clear()
        aggregator._failed_recving_pending.clear()


# -- the executor ------------------------------------------------------------------------------------------------------------


def chunk_bytes() -> int:
    from vllm import envs

    return int(envs.VLLM_MQ_MAX_CHUNK_BYTES_MB) * 1024 * 1024


def new_init_method() -> str:
    from vllm.utils.network_utils import get_file_store_init_method

    return str(get_file_store_init_method())
