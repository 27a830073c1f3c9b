"""Redundant experts: which slot holds which expert, which losses that survives, and how a lost expert comes back.

One half decides (pure, integers): placement, repair, certificates. The other half acts: loads, failover tables, tagged slots, refill.
"""
