"""Notices GPU, NVLink, driver and hang faults inside a worker and says what they mean.

The way: probe -> `Reading` -> fusion -> `Incident` with one `Verdict` -> whoever listens (recovery, metrics, people)."""
