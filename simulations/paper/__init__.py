"""The paper's experiment: three networks, in plaintext and on ciphertext, cross-validated by patient."""
