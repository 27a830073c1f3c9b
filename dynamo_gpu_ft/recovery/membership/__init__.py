"""Who belongs to an engine in which epoch, and the stores that agree on it. No member hosts its own store."""
