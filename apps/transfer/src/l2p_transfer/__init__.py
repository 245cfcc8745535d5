"""Prompts to pixel model in one command: data, surgery, training, evaluation, report."""
