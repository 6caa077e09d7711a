"""Experiments with a known truth: what the hub claims of itself, measured over many seeds."""
