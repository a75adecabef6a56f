"""Attacks on masked runs: each is tried on real vaults, and again with one protection off, where it succeeds."""
