"""`l2p-ablate`: the paper's ablations (Fig. 9, Fig. 12) on the miniature, each as one command."""
