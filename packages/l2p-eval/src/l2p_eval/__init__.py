"""GenEval, Frechet distances and reports for latent and pixel models (L2P, sec. 4)."""
