"""The names of what a run leaves in its folder."""

RECORD = "federation.json"
SEALED, CLEAR = "model.sealed", "model.npz"  # the last model, which the coordinator cannot read, or can
BEFORE = "model-before.sealed"  # of the round before, while a run goes on
