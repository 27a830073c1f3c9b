"""How long a disk log takes to open again: the index from summaries, after a close and after a kill, with small payloads.

Only headers and summaries are read, so the payload's size does not matter; the log's number of blocks does.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native

BLOCKS = 100_000
TARGET_S = 1.0
CHILD = """
import os, sys
from dynamo_gpu_ft import native
core = native.load()
log = core.DiskLog.open(sys.argv[1], segment_bytes=64 << 20)
namespace = log.add_namespace(b'{"engine": {"model": "bench"}}')
data = os.urandom(1024)
for number in range(int(sys.argv[2])):
    key = core.DiskKey.seal(namespace=namespace, shard=0, position=0, epoch=1, block_hash=b"%032d" % number,
                            parent_link=namespace, payload=data)
    log.append(key, data, number, 600.0)
assert log.flush(600)
os._exit(0)  # as killed: nothing is closed
"""


def measure(options: Options) -> list[Row]:
    blocks = BLOCKS // 10 if options.quick else BLOCKS
    core = native.load()
    folder = Path(tempfile.mkdtemp(prefix="gft-bench-", dir=os.environ.get("GFT_BENCH_DISK")))
    try:
        options.say(f"recovery_scan: writing {blocks} blocks")
        path = folder / "log"
        subprocess.run([sys.executable, "-c", CHILD, str(path), str(blocks)], check=True)
        rows = []
        for name in ("killed", "closed"):
            times = []
            for _ in range(1 if name == "killed" else 7):
                started = time.perf_counter()
                log = core.DiskLog.open(str(path), segment_bytes=64 << 20)
                times.append(time.perf_counter() - started)
                assert log.stats()["records"] == blocks, log.stats()
                log.close(600)
            took = statistics.median(times)
            rows.append(
                row(
                    f"recovery_scan.{name}.{blocks}",
                    took,
                    "s",
                    baseline=TARGET_S,
                    ratio=TARGET_S / took,
                    target=1.0,
                    note=f"baseline is the target of 1 s for 100,000 blocks; {spread(times)}",
                )
            )
        return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)
