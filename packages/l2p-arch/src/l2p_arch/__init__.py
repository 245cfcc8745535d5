"""Pixel-space diffusion transformers from latent ones: patchify, Detailer Head, weight surgery (L2P, sec. 3.3)."""
