"""Pages and pictures that show scores."""
