"""The L2P trainer: DeepSpeed ZeRO, freeze masks, noise shift, exact resume (L2P, eq. 5)."""
