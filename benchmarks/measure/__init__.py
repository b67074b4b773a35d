"""Programs that measure one thing each; `python benchmarks/measure` lists them."""
