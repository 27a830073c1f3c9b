"""The NVLink probe: which links are up, and how fast each link's error counters grow, on old drivers and devices and on Blackwell.

One of the probes of `attach`. A link that was up and is down is failed; errors count over a window, because every link has some.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import msgspec

from dynamo_gpu_ft.health.probes.base import Probe, Seen, reading, seen
from dynamo_gpu_ft.health.probes.nvml import Answer, Gpu
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.topology import Device

MAX_LINKS = 36
WINDOW_S = 60.0
_KEPT = 64
_LINK_COUNT, _STATE = 91, 165

# Counters by field id, asked per link: how many within the window are too many. 161 to 163 are gone on Blackwell, 206 to 214 new.
# Bit errors that the code corrects (219 to 222, 235 to 250) and retries (295) belong to a healthy link and are left out.
LIMITS = {
    "replay": (161, 100),
    "recovery": (162, 3),
    "crc": (163, 100),
    "malformed": (206, 1),
    "overrun": (207, 10),
    "receive": (208, 100),
    "remote": (209, 100),
    "general": (210, 100),
    "integrity": (211, 10),
    "discards": (212, 100),
    "recovered": (213, 3),
    "recovery_failed": (214, 1),
}
# The same three counters through the function that older libraries have: their number there.
_OLD = {"replay": 0, "recovery": 1, "crc": 2}


class NvlinkProbe(Probe):
    """Readings name their link in the fact `link`; what concerns all links of a GPU has none."""

    name = "nvlink"

    def read(self, gpu: Gpu) -> Seen:
        count = gpu.fields([_LINK_COUNT])[_LINK_COUNT]
        answers: dict[str, Answer] = {}
        for link in range(min(count.value or 0, MAX_LINKS) if count.code == 0 else MAX_LINKS):
            state = gpu.ask("GetNvLinkState", link)
            if state.absent and count.code != 0:
                break  # how many there are was not told: the first that is not there ends them
            answers[f"state.{link}"] = state
        links = [int(name[6:]) for name, a in answers.items() if a.code == 0 and a.value]
        asked = [(field, link) for link in links for field, _ in LIMITS.values()]
        got = gpu.fields(asked) if asked else {}
        for link in links:
            for name, (field, _) in LIMITS.items():
                answer = got[(field, link)]
                if answer.code != 0 and name in _OLD:
                    answer = gpu.ask("GetNvLinkErrorCounter", link, _OLD[name])
                answers[f"{name}.{link}"] = answer
        return seen(answers)

    def remember(self, before: Seen, now: Seen) -> Seen:
        """Counters of the window, the moment before it included."""
        now = super().remember(before, now)
        past = [*before.past, (before.at, _counters(before.values))][-_KEPT:]
        while len(past) > 1 and past[1][0] <= now.at - WINDOW_S:
            past.pop(0)
        return msgspec.structs.replace(now, past=tuple(past))

    def judge(self, device: Device, before: Seen | None, now: Seen) -> list[Reading]:
        if before is None:
            return self._down_already(device, now)
        found = []
        for name, up in now.values.items():
            link = name.removeprefix("state.")
            if name == link or name not in before.values or bool(up) == bool(before.values[name]):
                continue
            state, text = (State.HEALTHY, "is up again") if up else (State.FAILED, "is down")
            found.append(reading(self.name, device, now.at, state, f"link {link} {text}", facts={"link": link}))  # fmt: skip
        was, is_now = _troubled(before), _troubled(now)
        for link, trouble in is_now.items():
            if was.get(link) == trouble:
                continue
            state = State.FAILED if "recovery_failed" in trouble else State.DEGRADED
            facts = {"link": link, **{name: str(n) for name, n in _window(now, link).items()}}
            text = f"link {link}: {', '.join(sorted(trouble))} errors within {WINDOW_S:.0f} s"
            found.append(reading(self.name, device, now.at, state, text, facts=facts))
        for link in was:
            if link not in is_now and now.values.get(f"state.{link}"):
                text = f"link {link}: no errors that count within {WINDOW_S:.0f} s"
                found.append(reading(self.name, device, now.at, State.HEALTHY, text, facts={"link": link}))  # fmt: skip
        return found

    def _down_already(self, device: Device, now: Seen) -> list[Reading]:
        """Links that are down at attach, where others are up: not wired, or not trained yet. None up: a GPU without a partner."""
        links = {n.removeprefix("state."): up for n, up in now.values.items() if n.startswith("state.")}  # fmt: skip
        down = [link for link, up in links.items() if not up]
        if not down or len(down) == len(links):
            return []
        text = f"{len(down)} of {len(links)} links are down"
        return [reading(self.name, device, now.at, State.DEGRADED, text, facts={"down": ",".join(down)})]  # fmt: skip


def _counters(values: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in values.items() if not name.startswith("state.")}


def _window(now: Seen, link: str) -> dict[str, int]:
    """How much each counter of a link grew within the window. A counter that fell began anew."""
    found = {}
    for name in LIMITS:
        key = f"{name}.{link}"
        steps = [values[key] for _, values in now.past if key in values]
        if key in now.values:
            steps.append(now.values[key])
        rise = sum(b - a if b >= a else b for a, b in pairwise(steps))
        if rise:
            found[name] = rise
    return found


def _troubled(now: Seen) -> dict[str, frozenset[str]]:
    """Links whose counters grew too fast, with the counters."""
    links = {name.rpartition(".")[2] for name in now.values}
    found = {}
    for link in sorted(links, key=int):
        over = frozenset(n for n, rise in _window(now, link).items() if rise >= LIMITS[n][1])
        if over:
            found[link] = over
    return found
