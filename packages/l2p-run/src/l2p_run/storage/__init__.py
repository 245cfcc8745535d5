"""Files and folders in an object store as on this machine; `l2p_run.places` is the door to it."""
