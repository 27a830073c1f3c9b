"""Typed stub of the native door's part for expert placement (csrc/bind_place.cpp); `_core` gives these names out.

Pure functions of their arguments; see csrc/gft_place.h. Buffers are contiguous: loads int64 [layers, experts], alive uint8 [ranks],
domains int32 [4, ranks] (gpu, tray, node, nvlink), tables int32 [layers, ranks x slots] with -1 for an empty slot."""

PlaceSizes = tuple[
    int, int, int, int, int, int, bool
]  # layers, experts, ranks, slots, losses, level, instant

def place_room(sizes: PlaceSizes, loads: bytes, alive: bytes, domains: bytes) -> int:
    """How many experts the live ranks can hold with the copies asked for."""

def place_plan(
    sizes: PlaceSizes, loads: bytes, alive: bytes, domains: bytes, old: bytes | None, max_moves: int
) -> bytes:
    """A table. "full" when there is no room, "invalid" for sizes or loads beyond their limits."""

def place_recover(
    sizes: PlaceSizes, loads: bytes, alive: bytes, domains: bytes, old: bytes | None, max_moves: int
) -> bytes:
    """As place_plan with `old`, where `max_moves` bounds all changes together, but for experts without any copy."""

def place_repair(
    sizes: PlaceSizes, loads: bytes, alive: bytes, domains: bytes, old: bytes | None, max_moves: int
) -> bytes:
    """`old` with the dead ranks' slots empty and every orphan in a slot of an expert that has several copies."""

def place_examine(
    sizes: PlaceSizes, loads: bytes, alive: bytes, domains: bytes, table: bytes
) -> tuple[tuple[int, int], tuple[int, int], list[tuple[int, int]], list[int], list[int]]:
    """(survived, all) of one and of two ranks, of trays, nodes and NVLink domains; fewest copies and balance (ppm) per layer."""
