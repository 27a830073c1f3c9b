"""Streams of a drill's engine while something happens to it: who had a token in which step, and the oracle's judgement at the end."""

from __future__ import annotations

import time

from dynamo_gpu_ft.engines.reference.sampling import Sampling
from tests.engines.expert_world import Drill, Oracle, prompts

TOKENS = 12


class Streams:
    """Requests on all ranks that have their first tokens; `got` what each has had."""

    def __init__(self, drill: Drill, tokens: int = TOKENS) -> None:
        self.engine, self._asked = drill.engine, dict[str, tuple[list[int], int]]()
        self.got: dict[str, list[int]] = {}
        self.ask(1, tokens)

    def ask(self, seed: int, tokens: int) -> None:
        """Further ones, until all have their first tokens."""
        for prompt in prompts(seed):
            name = self.engine.submit(prompt, Sampling(max_tokens=tokens))
            self._asked[name], self.got[name] = (prompt, tokens), []
        while not all(self.got.values()):
            self.step()

    def step(self) -> set[str]:
        """The requests that had a token."""
        outputs = [output for output in self.engine.step() if output.token is not None]
        for output in outputs:
            assert output.token is not None
            self.got[output.request].append(output.token)
        return {output.request for output in outputs}

    def of(self, shard: int) -> set[str]:
        return {request.id for request in self.engine.traffic.open(shard)}

    def to_the_end(self, oracle: Oracle) -> None:
        while self.engine.busy:
            self.step()
        assert not self.engine.failed
        assert self.got == {name: oracle.tokens(*asked) for name, asked in self._asked.items()}

    def recovers(self) -> set[str]:
        """Steps until an epoch is new; who had a token in the step that made it so."""
        epoch, until = self.engine.group.epoch, time.monotonic() + 60
        while time.monotonic() < until:
            had = self.step()
            if self.engine.group.epoch != epoch:
                return had
        raise AssertionError("nothing was recovered")
