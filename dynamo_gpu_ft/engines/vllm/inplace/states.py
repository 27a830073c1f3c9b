"""What a rank must know of requests that ran before it came: their tokens and sampling, and where each random generator is.

vLLM tells a rank about a request once. After a loss every rank forgets all and gets the same again, so that batch order and
draws stay equal on all of them. The data crosses vLLM's queue as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.engines.vllm.inplace import inside


@dataclass(frozen=True, slots=True)
class RequestState:
    """One request that was scheduled before, as the scheduler knows it. `sampling` and `lora` are vLLM's own objects."""

    request_id: str
    prompt_token_ids: list[int] | None
    output_token_ids: list[int]
    sampling: Any
    lora: Any = None
    prompt_embeds: Any = None
    prompt_is_token_ids: list[bool] | None = None

    @classmethod
    def of(cls, request: Any) -> RequestState:
        """From vLLM's Request."""
        return cls(
            request.request_id,
            request.prompt_token_ids,
            list(request.output_token_ids),
            request.sampling_params,
            request.lora_request,
            request.prompt_embeds,
            request.prompt_is_token_ids,
        )


@dataclass(frozen=True, slots=True)
class RandomState:
    """`default`: torch's own generator. `seeded`: request -> number of its output tokens -> its generator before the next draw."""

    default: Any
    seeded: dict[str, dict[int, Any]] = field(default_factory=dict)


class Draws:
    """Remembers where each seeded request's generator was before its last two draws.

    The output rank may be lost after the others have drawn a token that nobody received: they go back by one draw then."""

    def __init__(self) -> None:
        self._before: dict[str, dict[int, Any]] = {}

    def before_sampling(self, runner: Any) -> None:
        """Called before each draw; costs nothing without seeded requests."""
        generators = runner.input_batch.generators
        if not generators:
            self._before.clear()
            return
        now: dict[str, dict[int, Any]] = {}
        for index, generator in generators.items():
            request_id = runner.input_batch.req_ids[index]
            tokens = len(runner.requests[request_id].output_token_ids)
            former = self._before.get(request_id, {})
            kept = {count: state for count, state in former.items() if count >= tokens - 1}
            now[request_id] = {**kept, tokens: generator.get_state()}
        # A request that is not in this batch keeps what is known of it for as long as it lives.
        left = {name: states for name, states in self._before.items() if name in runner.requests}
        self._before = {**left, **now}

    def export(self, runner: Any) -> RandomState:
        """With where each generator is now: the next draw's place, if the lost step did not come to it."""
        import torch

        seeded = {k: dict(v) for k, v in self._before.items()}
        for request_id, state in runner.requests.items():
            generator = getattr(state, "generator", None)
            if generator is not None:
                known = seeded.setdefault(request_id, {})
                known.setdefault(len(state.output_token_ids), generator.get_state())
        return RandomState(torch.get_rng_state(), seeded)

    def restart(self, requests: Sequence[RequestState], random: RandomState) -> None:
        live = {request.request_id for request in requests}
        self._before = {k: dict(v) for k, v in random.seeded.items() if k in live}


def generator_of(request: RequestState, random: RandomState, vocabulary: int) -> Any:
    """The generator of a seeded request where it was before its next draw, None for others.

    If no rank remembers, its draws are made again as vLLM's sampler made them."""
    import torch

    seed = getattr(request.sampling, "seed", None)
    if seed is None or not inside.is_seeded(request.sampling):
        return None
    generator = torch.Generator()
    known = random.seeded.get(request.request_id, {}).get(len(request.output_token_ids))
    if known is not None:
        generator.set_state(known)
        return generator
    generator.manual_seed(seed)
    compat.draw_again(generator, len(request.output_token_ids), vocabulary)
    return generator


def install(runner: Any, requests: Sequence[RequestState], random: RandomState) -> None:
    """Makes `requests` the only ones that vLLM's V1 model runner knows, none of them in its batch. Sets torch's generator."""
    import torch

    inside.clear_requests(runner)
    vocabulary = int(runner.input_batch.vocab_size)
    for request in requests:
        generator = generator_of(request, random, vocabulary)
        inside.add_request_state(runner, request, generator)
    torch.set_rng_state(random.default)
