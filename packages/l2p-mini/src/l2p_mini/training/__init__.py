"""How the miniature's source LDM was trained: `.vae`, then `.ldm`. Needs `l2p-mini[train]`."""
