"""What crosses a boundary: wire names, counts, the vault's protocol and its client."""
