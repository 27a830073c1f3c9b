"""Makes the demo's prompts: distinct, of an exact number of tokens, from text this package carries itself.

The scenario sends them as token ids, so that every run and every engine sees the same input.
"""

import random
from pathlib import Path

from dynamo_gpu_ft.errors import GpuFtError

# The answers should wander: asked about the code itself, a small model repeats one sentence to the end, and repeated
# sentences would hide a difference.
QUESTIONS = (
    "Tell a long story about a lighthouse keeper and a storm, with names and places.",
    "Describe the history of the city of Lisbon, century by century.",
    "Write a letter from a sailor to his sister about the animals he has seen.",
    "Give a recipe for a winter soup, and tell where each part of it comes from.",
)
REPLY = "I will remember it. What else can I do for you?"


def make_prompts(model: Path, count: int, tokens: int, seed: int) -> list[list[int]]:
    """`count` prompts of exactly `tokens` token ids each, equal for equal arguments. Reads the model's tokenizer.

    Each prompt is its own stretch of the package's sources and a question, so no two share more than a few
    leading tokens. Errors: `GpuFtError` when the folder has no tokenizer or the sources are too short.
    """
    from tokenizers import Tokenizer

    path = model / "tokenizer.json"
    if not path.is_file():
        raise GpuFtError(
            "the model folder has no tokenizer",
            where=str(path),
            rule="the demo makes its prompts as token ids",
            remedy="a local Hugging Face folder with tokenizer.json as --model",
        )
    tokenizer = Tokenizer.from_file(str(path))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    chat = tokenizer.token_to_id("<|im_start|>") is not None
    stretches = _stretches(encode(_sources()), count, tokens, random.Random(seed))
    prompts = []
    for number, stretch in enumerate(stretches):
        question = QUESTIONS[number % len(QUESTIONS)]
        head_text, tail_text = _around(
            f"Remember part {number + 1} of a program:\n", question, chat
        )
        head, tail = encode(head_text), encode(tail_text)
        room = tokens - len(head) - len(tail)
        if room < 1:
            raise GpuFtError(
                "the prompts are too short for a question",
                value=tokens,
                remedy=f"--prompt-tokens {len(head) + len(tail) + 1} or more",
            )
        prompts.append(head + stretch[:room] + tail)
    return prompts


def _around(opening: str, question: str, chat: bool) -> tuple[str, str]:
    """What comes before and after the stretch; in ChatML for a model that speaks it, else plain."""
    if not chat:
        return opening, f"\n\n{question}\n\n"
    turn, end = "<|im_start|>", "<|im_end|>\n"
    reply = f"{end}{turn}assistant\n{REPLY}{end}{turn}user\n"
    return f"{turn}user\n{opening}", f"{reply}{question}{end}{turn}assistant\n"


def _sources() -> str:
    package = Path(__file__).resolve().parents[2]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py")))


def _stretches(ids: list[int], count: int, tokens: int, chooser: random.Random) -> list[list[int]]:
    """`count` stretches of `tokens` ids that do not overlap, each at a random place of its own share of `ids`."""
    share = len(ids) // count
    if share < tokens:
        raise GpuFtError(
            "the text for the prompts is too short",
            value=f"{len(ids)} tokens for {count} prompts of {tokens}",
            remedy=f"--prompt-tokens {share} or fewer --streams",
        )
    starts = [number * share + chooser.randint(0, share - tokens) for number in range(count)]
    return [ids[start : start + tokens] for start in starts]
