"""One rank of a real vLLM expert-parallel group over gloo, for test_vllm_experts: `python eplb_rank.py RANK RANKS FOLDER STORY`.

Everything of vLLM's expert load balancer is its own: EplbState, the policy registry, maps, gloo transfer. Ours are the model (an object
with weights that say which expert they are) and, because torch has neither on a CPU alone, an event and a stream that do nothing.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

LAYERS, EXPERTS, HIDDEN = 3, 8, 5


class Nothing:
    def __init__(self, *_, **__):
        pass

    def record(self, *_):
        pass

    def wait(self, *_):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, _):
        return 0.0


torch.Event = Nothing
torch.accelerator.current_stream = Nothing

from vllm.config.parallel import EPLBConfig  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.distributed.eplb import eplb_state  # noqa: E402

from dynamo_gpu_ft.engines.vllm import expert_faults, experts  # noqa: E402
from dynamo_gpu_ft.experts.base import Domains, Move, Placement, Plan  # noqa: E402


class Model:
    """What vLLM's EPLB asks of a MixtureOfExperts; an expert's weights are layer * 100 + expert."""

    num_moe_layers, num_logical_experts, num_routed_experts = LAYERS, EXPERTS, EXPERTS
    num_expert_groups = 1
    moe_layers = ()

    def __init__(self, rank, ranks, slots):
        self.num_physical_experts, self.num_local_physical_experts = ranks * slots, slots
        self.num_redundant_experts = ranks * slots - EXPERTS
        start = eplb_state.EplbState.build_initial_global_physical_to_logical_map(
            EXPERTS, self.num_redundant_experts
        )
        mine = start[rank * slots : (rank + 1) * slots]
        self.expert_weights = [
            [torch.stack([value(layer, e, width) for e in mine]) for width in (HIDDEN, 2)]
            for layer in range(LAYERS)
        ]

    def set_eplb_state(self, *_):
        pass


def value(layer, expert, width=HIDDEN):
    return torch.full((width,), float(layer * 100 + expert))


def holds(model):
    """Which expert each slot's weights are of, both tensors agreeing; -1 for anything else."""
    found = []
    for layer, (a, b) in enumerate(model.expert_weights):
        row = [int(x[0]) - layer * 100 for x in a]
        same = [torch.equal(a[s], value(layer, e)) and torch.equal(b[s], value(layer, e, 2)) for s, e in enumerate(row)]  # fmt: skip
        found.append([e if ok else -1 for e, ok in zip(row, same, strict=True)])
    return found


def main(rank, ranks, folder, story):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    for name in ("_WORLD", "_EP", "_EPLB"):
        group = parallel_state.GroupCoordinator(
            [list(range(ranks))], rank, "gloo", False, group_name=name.lower()
        )
        setattr(parallel_state, name, group)
    eplb_state.get_node_count = lambda: story["nodes"]  # by addresses of machines otherwise
    if story.get("mode"):
        experts.install(story["mode"])
    model = Model(rank, ranks, story["slots"])
    config = SimpleNamespace(compute_hash=lambda: "x", model="tiny")
    parallel = SimpleNamespace(
        eplb_config=EPLBConfig(window_size=4, step_interval=8, use_async=False, communicator="torch_gloo"),
        enable_elastic_ep=False, num_ubatches=0,
    )  # fmt: skip
    state = eplb_state.EplbState(parallel, torch.device("cpu"))
    state.add_model(model, config)
    each = state.model_states["x"]
    for _ in range(8):  # steps of vLLM's own, until it rearranges
        hot = torch.tensor(story["loads"]).gather(1, each.physical_to_logical_map.long())
        each.expert_load_pass.copy_(hot if rank == 0 else torch.zeros_like(hot))
        state.step()
    answer = {"policy": state.policy.__name__, "balanced": snapshot(each, model)}
    if "kill" in story:
        answer |= lose(rank, ranks, folder, story, each, model)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(answer))
    os._exit(0)  # gloo's teardown would wait for the dead


def snapshot(each, model):
    maps = (each.physical_to_logical_map, each.logical_to_physical_map[..., :4], each.logical_replica_count)  # fmt: skip
    return {"holds": holds(model), "maps": [m.tolist() for m in maps]}


def lose(rank, ranks, folder, story, each, model):
    dead = story["kill"]
    here = Path(folder) / f"ready{rank}"
    here.touch()
    wait(folder, "ready", range(ranks))
    if rank == dead:
        os.kill(os.getpid(), signal.SIGKILL)
    address = each.physical_to_logical_map.data_ptr()
    answer = expert_faults.mask(each, [dead], ranks=ranks)
    masked = snapshot(each, model)
    plan = repaired(answer, ranks, story, dead)
    refilled = []

    def refill(layer, expert, tensors):
        refilled.append([layer, expert])
        for tensor in tensors:
            tensor.copy_(value(layer, expert, tensor.numel()))

    def agree():
        (Path(folder) / f"done{rank}").touch()
        wait(folder, "done", set(range(ranks)) - {dead})

    group = parallel_state.get_ep_group().cpu_group
    expert_faults.apply(each, answer.masked, plan, group=group, refill=refill, agree=agree)
    return {
        "uncovered": answer.uncovered,
        "masked": masked,
        "repaired": snapshot(each, model),
        "refilled": refilled,
        "same_tensor": address == each.physical_to_logical_map.data_ptr(),
    }


def repaired(answer, ranks, story, dead):
    if "target" in story:  # a repair written down in the story: also moves between survivors
        target = Placement.of_rows(story["target"], experts=EXPERTS, ranks=ranks)
        copies = [answer.masked.copies(layer) for layer in range(LAYERS)]
        moves = [
            Move(layer, e, copies[layer][e][0] if copies[layer][e] else -1, s, 1)
            for layer, row in enumerate(story["target"])
            for s, e in enumerate(row)
            if e >= 0 and e != answer.masked.row(layer)[s]
        ]
        return SimpleNamespace(placement=target, moves=moves)
    from dynamo_gpu_ft.experts import planner

    alive = [r != dead for r in range(ranks)]
    plan: Plan = planner.repair(
        answer.masked, story["loads"], alive=alive, domains=Domains.regular(ranks, per_tray=1),
        aim=story_aim(story),
    )  # fmt: skip
    return plan


def story_aim(story):
    from dynamo_gpu_ft.experts.base import Aim

    return Aim(mode=story["mode"])


def wait(folder, name, ranks, seconds=60):
    end = time.monotonic() + seconds
    while not all((Path(folder) / f"{name}{r}").exists() for r in ranks):
        assert time.monotonic() < end, f"{name} of {ranks} did not come"
        time.sleep(0.005)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
