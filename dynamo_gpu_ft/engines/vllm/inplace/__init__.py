"""Recovery in place of a vLLM engine: one lost tensor-parallel worker is replaced while EngineCore and the others keep running."""
