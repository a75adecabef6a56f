"""What hospitals' networks do to a federation, done on purpose: real processes, killed, cut off and fed junk."""
