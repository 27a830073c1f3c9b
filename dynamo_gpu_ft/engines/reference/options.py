"""How one reference engine is set up: the sizes and devices of `Options`, beside the package's own `Config`.

Frozen data; the driver hands both to every rank.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dynamo_gpu_ft.config import Config


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """model       folder of a Llama or Mixtral checkpoint
    tp, pp      tensor and pipeline parallel sizes
    ep, slots   expert parallel ranks, instead of tp x pp (experts/engine.py), and the expert slots that each has per layer
    dtype       "float32", "bfloat16" or "float16": weights, cache and activations
    block       tokens of a KV block;  blocks: how many each rank has, the first belongs to nobody
    tile        rows that every product sees;  rows: most rows of a step (a prompt is prefilled in chunks of what is left)
    device      "cpu", or "cuda": device d of the ranks is CUDA's device d modulo their number
    graphs      whether a CUDA device's steps are replayed as CUDA graphs, but for their sums and experts
    backend     of the ranks' communicators: "gloo" or "nccl";  nccl_library: its file, "": torch's own; on the CPU a simulated one
    devices     how many there are for the ranks, spare ones included; 0: one for each shard
    threads     of a rank's arithmetic
    name        names the engine in its files; one live engine each
    faults      whether ranks take orders to hurt themselves (tests and drills)
    settings    keys of the package's `Config`
    """

    model: str
    tp: int = 1
    pp: int = 1
    ep: int = 0
    slots: int = 0
    dtype: str = "float32"
    block: int = 16
    blocks: int = 256
    tile: int = 8
    rows: int = 64
    device: str = "cpu"
    graphs: bool = True
    backend: str = "gloo"
    nccl_library: str = ""
    devices: int = 0
    threads: int = 1
    name: str = "reference"
    faults: bool = False
    settings: dict[str, Any] = {}

    @property
    def ranks(self) -> int:
        return self.ep or self.tp * self.pp

    def config(self) -> Config:
        return Config.load(self.settings)
