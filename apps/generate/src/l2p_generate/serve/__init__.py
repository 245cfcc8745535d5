"""The web page of `l2p-generate serve`; needs the extra l2p-generate[serve]."""
