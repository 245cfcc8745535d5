"""What stands before every server: its address, who may ask, and the folder that goes with it."""
