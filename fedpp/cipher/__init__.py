"""Ciphertext zone: the MORE algebra, the evaluation key and the encrypted dataset on disk."""
