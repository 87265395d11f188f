"""Measured time as a target: the joining of `exporters`' measurements and `gbn`'s choices."""
