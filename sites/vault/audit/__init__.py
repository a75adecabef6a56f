"""Audit log of the vault: one signed line a call, its verification, and what peers remember of it."""
