"""Runs the command line as `python -m dynamo_gpu_ft`; the console script `dynamo-gpu-ft` enters at the same place.

First stop of every command: it hands the arguments to `cli.main` and its answer to the shell.
"""

import sys

from dynamo_gpu_ft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
