"""Measurements against a peer or a physical limit; each runs as `python -m benchmarks.NAME`."""
