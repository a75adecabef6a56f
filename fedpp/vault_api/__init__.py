"""Vault API: the gRPC interface between the trainer and the vault, and its client."""
