"""Masked runs: the coordinator relays statements, adds masked updates, and reads no state."""
