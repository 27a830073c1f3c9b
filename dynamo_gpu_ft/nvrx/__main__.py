"""Runs the launcher as `python -m dynamo_gpu_ft.nvrx`. First stop: it hands the arguments to `command.main`, its answer to the shell."""

import sys

from dynamo_gpu_ft.nvrx.command import main

if __name__ == "__main__":
    sys.exit(main())
