"""A small, whole engine in torch: the oracle of conformance, the model for other engines' adapters, and the vehicle on GPU machines."""
