"""Metrics on sets of images: Frechet distance, Inception Score, CLIP scores, diversity."""
