"""Aggregation: what both sides of a round must compute alike, and the masks of secure aggregation."""
