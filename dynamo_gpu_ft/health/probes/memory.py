"""Probes of GPU memory: ECC counters with the SRAM threshold, and rows that were or wait to be replaced.

Two of the probes of `attach`; judged by difference, for NVML counts since the last reset or for ever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from dynamo_gpu_ft.health.probes.base import LevelProbe, Probe, Seen, grown, reading, seen
from dynamo_gpu_ft.health.probes.nvml import Answer, Gpu
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.topology import Device

_FIELDS = {"corrected": 3, "uncorrected": 4, "corrected_ever": 5, "uncorrected_ever": 6}
_RECOVERY_ACTION = 230
# Single corrected errors are everyday; from here on they are told, and fusion says from when on they are a storm.
CORRECTED_PER_S = 10.0


class EccProbe(Probe):
    """Uncorrectable errors that are new, corrected ones that come fast, and the SRAM threshold.

    NOTE: an uncorrectable error may have been contained to one process. Where the driver tells its recovery action (field 230,
    since R565), that and the XIDs say what it means, and the counter is only "degraded"; on older drivers it is "failed".
    """

    name = "ecc"

    def read(self, gpu: Gpu) -> Seen:
        fields = gpu.fields([*_FIELDS.values(), _RECOVERY_ACTION])
        answers = {name: fields[field] for name, field in _FIELDS.items()}
        answers["action_told"] = Answer(1, 0) if fields[_RECOVERY_ACTION].code == 0 else Answer(None, 3)  # fmt: skip
        mode = gpu.ask("GetEccMode")
        if mode.code == 0 and not mode.value[0]:
            return Seen(at=time.monotonic())  # switched off: the counters say nothing
        sram = gpu.fill("GetSramEccErrorStatus", "c_nvmlEccSramErrorStatus_v1_t")
        if sram.code == 0:
            s = sram.value
            answers["sram_uncorrected"] = Answer(s.volatileUncParity + s.volatileUncSecDed, 0)
            answers["sram_threshold"] = Answer(s.bThresholdExceeded, 0)
        elif not sram.absent:
            answers["sram"] = sram
        found = seen(answers)
        # What only goes with the others is no support of its own.
        return found if set(found.values) - {"action_told"} else Seen(at=found.at, unread=found.unread)  # fmt: skip

    def judge(self, device: Device, before: Seen | None, now: Seen) -> list[Reading]:
        facts = {name: str(now.values[name]) for name in (*_FIELDS, "sram_uncorrected", "sram_threshold") if name in now.values}  # fmt: skip
        fresh = Seen(at=now.at, values=dict.fromkeys(now.values, 0)) if before is None else before
        found = []
        lost = max(grown(fresh, now, "uncorrected"), grown(fresh, now, "sram_uncorrected"))
        if lost:
            state = State.DEGRADED if "action_told" in now.values or before is None else State.FAILED  # fmt: skip
            text = f"{lost} uncorrectable memory errors" + (" since the last reset" if before is None else "")  # fmt: skip
            found.append(reading(self.name, device, now.at, state, text, facts=facts))
        if grown(fresh, now, "sram_threshold"):
            text = "uncorrectable errors of the on-chip memory passed their threshold: run field diagnostics"
            found.append(reading(self.name, device, now.at, State.DEGRADED, text, facts=facts))
        passed = now.at - fresh.at
        fixed = grown(fresh, now, "corrected")
        if before is not None and passed > 0 and fixed / passed >= CORRECTED_PER_S:
            text = f"{fixed} corrected memory errors in {passed:.1f} s"
            found.append(reading(self.name, device, now.at, State.DEGRADED, text, facts=facts))
        return found


class RowsProbe(LevelProbe):
    """Row remapping and repair: failed (a bad row stays in use), degraded (something waits for a reset), healthy."""

    name = "rows"

    def read(self, gpu: Gpu) -> Seen:
        rows, repair = gpu.ask("GetRemappedRows"), gpu.ask("GetRepairStatus")
        flag = gpu.fields([307])[307]
        answers: dict[str, Answer] = {
            "unrepairable": gpu.ask("GetUnrepairableMemoryFlag_v1"),
            "bank_pending": flag,
        }
        if rows.code == 0:
            names = ("corrected_rows", "uncorrected_rows", "pending", "failure")
            answers |= {name: Answer(value, 0) for name, value in zip(names, rows.value, strict=True)}  # fmt: skip
        else:
            answers["rows"] = rows
        if repair.code == 0:
            answers["channel_pending"] = Answer(repair.value[0], 0)
            answers["tpc_pending"] = Answer(repair.value[1], 0)
        else:
            answers["repair"] = repair
        return seen(answers)

    def level(self, values: Mapping[str, int]) -> tuple[State, str, int | None]:
        if values.get("failure") or values.get("unrepairable"):
            what = "a row could not be replaced" if values.get("failure") else "memory cannot be repaired"  # fmt: skip
            return State.FAILED, f"{what}: bad memory stays in use", None
        waiting = [
            what
            for name, what in (
                ("pending", "memory rows"), ("bank_pending", "memory banks"),
                ("channel_pending", "a memory channel"), ("tpc_pending", "a processor cluster"),
            )
            if values.get(name)
        ]  # fmt: skip
        if waiting:
            return State.DEGRADED, f"{', '.join(waiting)} will be replaced at the next reset", None
        return State.HEALTHY, "no row waits and none failed", None
