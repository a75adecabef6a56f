"""The vault's part in masked runs: what it stores, what it checks, and what it signs, phase by phase."""
