"""Weights and model directories on disk: reading, writing, recognising, exporting."""
