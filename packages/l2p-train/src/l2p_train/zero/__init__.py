"""The model under DeepSpeed's ZeRO stages, and the optimiser."""
