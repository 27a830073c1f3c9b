"""The command line: doctor, demo, serve, inspect.

The outermost room: it asks the others and shows a person what they say. `main` knows the commands, each command is one module
with `add_arguments(parser)` and `run(args) -> exit code`: 0 ok, 1 problems found, 2 could not run.
"""
