"""A rehearsal on random weights: what it runs on, and what it measured beside the plan."""
