"""What a forward costs (Fig. 4): counted on meta tensors or measured here, alone or compared."""

from l2p_eval.efficiency.forward import Count, Timing, count, measure

__all__ = ["Count", "Timing", "count", "measure"]
