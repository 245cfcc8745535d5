"""Prompts (sec. 3.2): the category tree, what writes prompts along it, and their files."""
