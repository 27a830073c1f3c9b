"""A process that follows a disk log while its writer collects, and ends at the first block that it should know and does not.

Started by test_disk_log.py, which stops and continues it at any moment: FOLDER, a file of links (16 bytes each, all of stored blocks).
"""

from __future__ import annotations

import sys
from pathlib import Path

from dynamo_gpu_ft import native

core = native.load()


def follow(folder: str, links: Path) -> int:
    """Looks until the file of links is gone, in turn by one reader that stays and by fresh ones; says how often it looked."""
    stays = core.DiskLog.open(folder, read_only=True)
    looks = 0
    while (stored := content(links)) is not None:
        for fresh in (False, True):
            reader = core.DiskLog.open(folder, read_only=True) if fresh else stays
            reader.refresh()
            missing = [
                i // 16
                for i in range(0, len(stored), 16)
                if not reader.find_link(stored[i : i + 16])
            ]
            if missing:
                print(f"look {looks}, fresh {fresh}: of {len(stored) // 16} not found {missing}")
                return 1
            if fresh:
                reader.close()
            looks += 1
    print(f"{looks} looks")
    return 0


def content(links: Path) -> bytes | None:
    """None once the file is gone, which may be at any moment."""
    try:
        return links.read_bytes()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    print("ready", flush=True)
    sys.exit(follow(sys.argv[1], Path(sys.argv[2])))
