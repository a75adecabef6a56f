"""What hospitals' networks do to a federation, done on purpose: real processes on loopback, killed, cut and fed junk."""
