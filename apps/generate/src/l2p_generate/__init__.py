"""Text to image with an L2P model."""
