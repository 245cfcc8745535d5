"""DPG-Bench: questions about dense prompts, and who answers them."""
