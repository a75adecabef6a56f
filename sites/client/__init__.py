"""The ClientApp: local training on ciphertext, and the replies to the coordinator."""
