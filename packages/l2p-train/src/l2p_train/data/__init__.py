"""The corpus as training batches, and the text embeddings beside it."""
