"""vLLM: an out-of-tree KV connector (scheduler half, worker half) and a resilient engine client under its OpenAI server.

Nothing is imported here: vLLM loads `plugin` by entry point and `connector` by module path.
"""
