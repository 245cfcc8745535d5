"""How the miniature's source LDM was trained: `python -m l2p_mini.training.vae`, then `.ldm`. Needs `l2p-mini[train]`."""
