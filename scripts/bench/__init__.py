"""Benchmarks; docs/benchmarks/README.md lists their commands and results."""
