"""A believable small world without a GPU, for tests and demonstrations. Product code never imports it."""
