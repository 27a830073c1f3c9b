"""Which devices and communicators an engine's ranks can have: gloo's or NCCL's, by `Options.backend`. The one place that chooses.

NCCL moves tensors where they lie: on GPUs, or in host memory with a simulated library. gloo's go through host memory.
"""

from __future__ import annotations

import torch

from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.recovery.comm.base import CommBackend, CommError
from dynamo_gpu_ft.recovery.comm.gloo import GlooBackend
from dynamo_gpu_ft.recovery.comm.nccl import NcclBackend
from dynamo_gpu_ft.recovery.comm.nccl_library import NcclLibrary
from dynamo_gpu_ft.recovery.comm.nccl_streams import CudaStream, HostStream
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous

BACKENDS = ("gloo", "nccl")
DEVICES = ("cpu", "cuda")


def check(options: Options) -> None:
    """Raises `ConfigError` unless ranks with these options can have their device and communicators on this machine. Loads NCCL where it is wanted,
    and makes no context on a GPU."""
    if options.backend not in BACKENDS:
        raise ConfigError(
            "no such back end for the ranks' communicators",
            where=options.name,
            value=options.backend,
            rule="one of " + ", ".join(BACKENDS),
            remedy='backend="gloo"',
        )
    if options.backend == "nccl":
        library, simulated = _library(options), options.device == "cpu"
        if library.simulated != simulated:
            raise _refused(
                options,
                f"{library.path} is a {'simulated' if library.simulated else 'real'} NCCL",
            )
    if options.device not in DEVICES or (
        options.device == "cuda" and not torch.backends.cuda.is_built()
    ):
        raise ConfigError(
            "ranks cannot compute on this device",
            where=options.name,
            value=options.device,
            rule="one of "
            + ", ".join(DEVICES)
            + ", the latter with a torch that is built for CUDA",
            remedy='device="cpu"',
        )


def backend_of(options: Options, rendezvous: Rendezvous) -> CommBackend:
    """The back end of one rank, in its own process; touches no device. Raises `ConfigError`."""
    timeout_s = options.config().step_deadline_s
    if options.backend != "nccl":
        return GlooBackend(rendezvous, timeout_s=timeout_s)
    library = _library(options)
    try:
        stream = HostStream(library) if options.device == "cpu" else CudaStream()
        return NcclBackend(rendezvous, timeout_s=timeout_s, library=library, stream=stream)
    except CommError as error:
        raise _refused(options, str(error)) from error


def _library(options: Options) -> NcclLibrary:
    path = options.nccl_library
    if options.device == "cpu" and not path:
        raise _refused(options, "no simulated NCCL is named")
    try:
        return NcclLibrary(path)
    except CommError as error:
        raise _refused(options, str(error)) from error


def _refused(options: Options, why: str) -> ConfigError:
    return ConfigError(
        "ranks cannot use NCCL here",
        where=options.name,
        value={"device": options.device, "why": why},
        rule="a real NCCL for tensors on GPUs, a simulated one for the CPU",
        remedy='backend="gloo", device="cuda", or as nccl_library what `python -m dynamo_gpu_ft.sim.nccl.build` prints',
    )
