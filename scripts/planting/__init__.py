"""Checkpoints with known artifacts planted in them, and made pictures with clear classes: `scripts/plant --help`."""
