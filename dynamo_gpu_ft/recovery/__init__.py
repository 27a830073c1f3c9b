"""Recovery: the ledger of open requests, what remains of a request, what to do after a death, and doing it with deadlines.

Knows no engine: `engines/` brings the steps that touch one.
"""
