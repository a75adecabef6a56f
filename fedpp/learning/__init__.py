"""Ciphertext zone: Keras layers, losses, optimizers and models that compute on ciphertext."""
