"""Masked runs at the vault: its journal, and the checks and signed statements of each phase."""
