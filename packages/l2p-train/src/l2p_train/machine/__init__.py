"""What the trainer asks of a machine: processes on one node, and files of tensors."""
