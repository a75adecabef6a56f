"""fedpp trains one diagnostic model over many hospitals, on ciphertext.

This file imports nothing on purpose: whoever imports a subpackage runs it, and
the coordinator must not load key code by the way.
"""
