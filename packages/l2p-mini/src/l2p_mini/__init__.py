"""A complete miniature of what L2P downloads: a world of scenes, an exact detector and a small source LDM."""
