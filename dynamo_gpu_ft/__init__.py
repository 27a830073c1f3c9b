"""GPU-level fault tolerance for LLM inference workers: open requests survive the death of their engine.

The root of the package, at the head of every flow: it names the version and nothing else, so that importing it costs
nothing and has no effect. Ask the rooms for what they hold: `dynamo_gpu_ft.config`, `.kv`, `.recovery`, `.engines`.
"""

__version__ = "0.1.0"
