"""`python -m dynamo_gpu_ft.cli.models NAME`: make the model if need be and print its folder.

Only the folder goes to standard output, so that a script can use it; progress goes to standard error.
"""

import argparse
import sys
from pathlib import Path

from dynamo_gpu_ft.cli.models.recipes import RECIPES
from dynamo_gpu_ft.errors import GpuFtError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dynamo_gpu_ft.cli.models", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES), help="which model to make")
    parser.add_argument("--cache-dir", type=Path, default=None, help="where to keep it")
    args = parser.parse_args(argv)
    try:
        print(RECIPES[args.name](args.cache_dir))
    except GpuFtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
