"""Weight surgery (sec. 3.3): a source checkpoint becomes the start of a pixel-space model."""
