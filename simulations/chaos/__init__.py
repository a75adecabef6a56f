"""Chaos suite: a deployment of real processes that are killed, cut off, slowed down and sent forged updates."""
