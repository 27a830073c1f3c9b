"""The PCIe probe: error counters of a GPU's link to the machine, and whether it has become narrower.

One of the probes of `attach`. The speed is left out: an idle GPU lowers it to save power.
"""

from __future__ import annotations

from dynamo_gpu_ft.health.probes.base import Probe, Seen, grown, reading, seen
from dynamo_gpu_ft.health.probes.nvml import Answer, Gpu
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.topology import Device

_FIELDS = {
    "replay": 94, "replay_rollover": 95, "to_recovery": 169, "correctable": 173, "naks_received": 174,
    "receiver": 175, "bad_tlp": 176, "naks_sent": 177, "bad_dllp": 178, "non_fatal": 179, "fatal": 180, "lcrc": 182,
    "lane": 183,
}  # fmt: skip
# How many per second are more than the everyday; the others are facts only.
_PER_S = {"replay": 1.0, "replay_rollover": 0.0, "correctable": 10.0, "bad_tlp": 1.0, "non_fatal": 0.0, "lcrc": 1.0}  # fmt: skip
_AT_LEAST = 3  # a rate over a short look needs that many


class PcieProbe(Probe):
    name = "pcie"

    def read(self, gpu: Gpu) -> Seen:
        got = gpu.fields(_FIELDS.values())
        answers = {name: got[field] for name, field in _FIELDS.items()}
        if answers["replay"].absent:
            answers["replay"] = gpu.ask("GetPcieReplayCounter")
        answers["width"] = gpu.ask("GetCurrPcieLinkWidth")
        answers["max_width"] = gpu.ask("GetMaxPcieLinkWidth")
        answers["generation"] = gpu.ask("GetCurrPcieLinkGeneration")
        answers["max_generation"] = gpu.ask("GetMaxPcieLinkGeneration")
        return seen({name: answer for name, answer in answers.items() if not _nonsense(name, answer)})  # fmt: skip

    def judge(self, device: Device, before: Seen | None, now: Seen) -> list[Reading]:
        facts = {name: str(value) for name, value in sorted(now.values.items())[:16]}
        found = []

        def tell(state: State, text: str) -> None:
            found.append(reading(self.name, device, now.at, state, text, facts=facts))

        width, full = now.values.get("width", 0), now.values.get("max_width", 0)
        was = None if before is None else before.values.get("width", 0)
        narrow = bool(width) and width < full
        if narrow and width != was:
            tell(State.DEGRADED, f"the link has {width} of {full} lanes")
        elif width and was and was < full and width == full:
            tell(State.HEALTHY, f"the link has all its {full} lanes again")
        if before is None:
            return found
        if fatal := grown(before, now, "fatal"):
            tell(State.FAILED, f"{fatal} fatal errors on the link")
        passed = max(now.at - before.at, 1e-3)
        for name, allowed in _PER_S.items():
            rise = grown(before, now, name)
            if rise and rise / passed > allowed and (rise >= _AT_LEAST or not allowed):
                tell(State.DEGRADED, f"{rise} {name.replace('_', ' ')} errors in {passed:.1f} s")
        return found


def _nonsense(name: str, answer: Answer) -> bool:
    """A width or generation that a lost or sleeping device reports: 0, or all ones."""
    return name.endswith(("width", "generation")) and answer.code == 0 and not 0 < answer.value <= 64  # fmt: skip
