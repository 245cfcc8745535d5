"""What `scripts/fuzz.py` tries: cases, the values in them, and one module per area."""
