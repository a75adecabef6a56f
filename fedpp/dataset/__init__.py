"""Ciphertext zone: the encrypted dataset on disk, its manifest, reader, writer and encryption at rest."""
