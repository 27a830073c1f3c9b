"""Recovery of one group of ranks in place: states, plan and the coordinator that drives an engine's adapter through them."""
