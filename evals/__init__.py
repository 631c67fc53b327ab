"""Benchmarks and inference: questions in, answers out; scoring."""
