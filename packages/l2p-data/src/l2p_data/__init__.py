"""Prompts, filters and Ray-parallel image synthesis for a Latent-to-Pixel transfer (L2P, sec. 3.2)."""
