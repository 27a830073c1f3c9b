"""`dynamo-gpu-ft serve` as its users meet it: HTTP streams over the death of the engine, metrics, inspection, bad flags."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import engine_environment, prompt

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.demo import processes
from dynamo_gpu_ft.cli.demo.load import Ask, Stream, run_streams
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.cli.demo.server import PROTECTED, Server, free_port
from dynamo_gpu_ft.recovery import ledger

pytestmark = [pytest.mark.engine, pytest.mark.timeout(500)]

FLAGS = "--dtype float32 --max-model-len 1024 --block-size 32 --max-num-seqs 4 --enforce-eager"
TOKENS, KILL_AT = 80, 30


def command(*arguments: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dynamo_gpu_ft", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        check=False,
    )


class Story:
    """One protected server: undisturbed streams, then the same streams with a kill in the middle."""

    def __init__(self, server: Server, environ: dict[str, str], metrics_port: int) -> None:
        self.server, self.environ, self.metrics_port = server, environ, metrics_port
        self.before = self.run("a", kill=False)
        self.killed: list[int] = []
        self.after = self.run("b", kill=True)

    def run(self, label: str, *, kill: bool) -> list[Stream]:
        # Other prompts for each label would not be comparable; the prefix cache makes the second run start faster only.
        asks = [Ask(f"serve{label}{i}", prompt(i), TOKENS) for i in range(3)]
        targets = self.server.engine()

        def watch(streams: list[Stream]) -> None:
            if kill and not self.killed and all(len(s.tokens) >= KILL_AT for s in streams):
                self.killed = [t.pid for t in targets]
                for target in targets:
                    processes.kill(target)

        return asyncio.run(run_streams(self.server.url, "tiny", asks, watch=watch))

    def metrics(self, port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def story(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("serve")
    metrics_port = free_port()
    environ = {
        **engine_environment(),
        "DYN_GPU_FT_ARENA_DIR": str(folder),
        "DYN_GPU_FT_ARENA_BYTES": "128MiB",
        "DYN_GPU_FT_LEDGER_BYTES": "1MiB",
        "DYN_GPU_FT_METRICS_PORT": str(metrics_port),
        "DYN_GPU_FT_RESTORE_BY_COST": "false",  # a noisy machine may think that computing is quicker
    }
    flags = [*FLAGS.split(), "--served-model-name", "tiny"]
    server = Server(
        PROTECTED, tiny_model, flags, port=free_port(), environ=environ, log=folder / "log"
    )
    with server:
        with Phase("starting") as phase:
            server.wait_ready(phase)
        yield Story(server, environ, metrics_port)


def test_open_http_streams_go_on_token_for_token(story: Story) -> None:
    assert len(story.killed) >= 2
    assert [s.error for s in story.after] == [None] * 3
    assert [s.tokens for s in story.after] == [s.tokens for s in story.before]
    assert [s.text for s in story.after] == [s.text for s in story.before]
    assert {s.finish_reason for s in story.after} == {"length"}
    assert {s.prompt_tokens for s in story.after} == {300}


def test_the_server_is_healthy_and_serves_new_requests_afterwards(story: Story) -> None:
    assert story.server.healthy()
    again = asyncio.run(run_streams(story.server.url, "tiny", [Ask("new", prompt(9), 5)]))
    assert again[0].error is None
    assert len(again[0].tokens) == 5


def test_the_metrics_ports_tell_the_recovery_and_the_snapshots(story: Story) -> None:
    front = story.metrics(story.metrics_port)
    assert 'dynamo_gpu_ft_recoveries_total{outcome="serving"} 1.0' in front
    assert 'dynamo_gpu_ft_recovery_duration_seconds_count{step="start"} 1.0' in front
    assert "dynamo_gpu_ft_protected 1.0" in front
    restored = next(
        line for line in front.splitlines() if line.startswith("dynamo_gpu_ft_restored_tokens")
    )
    assert float(restored.split()[-1]) >= 3 * 288
    worker = story.metrics(story.metrics_port + 1)
    assert "dynamo_gpu_ft_snapshot_bytes_total" in worker
    # The whole pass is timed, not what lies between two calls of vLLM's after it: no model computes 300 tokens in 0.6 ms.
    (token,) = [
        line for line in worker.splitlines() if line.startswith("dynamo_gpu_ft_prefill_tok")
    ]
    assert float(token.split()[-1]) > 2e-6


def test_inspect_shows_the_live_arena_and_verifies_every_block(story: Story) -> None:
    done = command("inspect", "--verify", "--json", environ=story.environ)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    text = json.dumps(seen)
    assert "tiny-llama" in text
    assert '"open_requests": []' in text


def test_a_misspelt_setting_is_refused_with_the_right_name_before_anything_starts(
    tiny_model: Path,
) -> None:
    transfer = {
        "kv_connector": "GpuFtConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"arena_byte": "1GiB"},
    }
    flags = [*FLAGS.split(), "--port", str(free_port())]
    flags += ["--kv-transfer-config", json.dumps(transfer)]
    done = command("serve", str(tiny_model), *flags, environ=engine_environment())
    assert done.returncode == 2
    assert "arena_bytes" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 400


@pytest.mark.parametrize("flag", [["--api-server-count", "2"], ["--headless"]])
def test_flags_that_start_something_else_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    from dynamo_gpu_ft.engines.vllm.serve import run

    assert run(["some-model", *flag]) == 2
    assert flag[0] in capsys.readouterr().err


def test_killing_the_server_itself_leaves_no_engine_and_a_ledger_ahead_of_every_client(
    story: Story,
) -> None:
    """The last test of this file: it ends the server."""
    engine = story.server.engine()
    front = story.server._child()
    # As many tokens as fit: a client that reads late must not find them all there.
    asks = [Ask(f"last{i}", prompt(20 + i), 700) for i in range(3)]

    def watch(streams: list[Stream]) -> None:
        if front.poll() is None and all(len(s.tokens) >= KILL_AT for s in streams):
            front.kill()
            front.wait(10)

    streams = asyncio.run(run_streams(story.server.url, "tiny", asks, watch=watch))
    assert not any(s.whole for s in streams), [(len(s.tokens), s.error) for s in streams]
    assert processes.wait_gone(engine, deadline_s=10.0) == []
    (path,) = Path(story.environ["DYN_GPU_FT_ARENA_DIR"]).glob("*.arena")
    arena = native.load().Arena.open(str(path), read_only=True)
    found = {r.prompt_token_ids[0]: r.token_ids for r in ledger.replay(arena)}
    assert len(found) == 3
    for stream in streams:
        kept = found[stream.ask.prompt[0]]
        assert kept[: len(stream.tokens)] == stream.tokens
