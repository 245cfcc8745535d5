"""A training run on disk and on machines: checkpoints, export, mirror, launchers."""
