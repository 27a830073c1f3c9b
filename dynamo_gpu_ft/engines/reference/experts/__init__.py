"""Expert parallelism of the reference engine: every rank computes its own requests' attention, and its slots' experts for everybody."""
