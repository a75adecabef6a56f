"""Symbolic adversary: an exhaustive search for attacks on the protocol of rounds, without any cryptography."""
