"""Simulated federations on one machine: scenarios, phantom data, runner, benchmarks."""
