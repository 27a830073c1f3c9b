"""One store and one load of random KV through every way the planner knows, for compute-sanitizer and for a quick look.

Arguments: arena path, device ("cuda", or "cpu" for a simulated one).
"""

import sys

import torch
from device_writer import BLOCKS, chain, open_tier, tensors


def main() -> None:
    path, device = sys.argv[1], sys.argv[2]
    kv = tensors(device, 11)
    before = {name: t.clone() for name, t in kv.items()}
    tier = open_tier(path, kv)
    tier.store(1, chain())
    assert tier.wait(300.0)
    for tensor in kv.values():
        tensor.zero_()
    tier.load(2, chain())
    assert tier.wait(300.0)
    assert all(set(result.statuses) == {"ok"} for result in tier.poll())
    for name, expected in before.items():
        assert torch.equal(kv[name].view(torch.int16), expected.view(torch.int16)), name
    print(f"{BLOCKS} blocks: the round trip is bit-equal; {tier.opened.kernels}; {tier.facts()}")
    tier.close(30.0)


if __name__ == "__main__":
    main()
