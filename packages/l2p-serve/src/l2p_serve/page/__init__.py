"""The web page over an L2P model, beside its source; needs the extra l2p-serve[page]."""
