"""`l2p-evaluate`: every number of the paper's Tables 1 and 2 and Fig. 4 and 5, by a command."""
