"""KV snapshots: what a block is, where it lives in the engine, where copies of it live, and how they come back.

Flow: engine blocks -> layout -> tier (copy, digest, link, seal); back: usable prefix -> load -> verification.
"""
