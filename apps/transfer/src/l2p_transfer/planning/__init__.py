"""What can be known of a run before it starts: `--dry-run`, the checks before a run, `--rehearse`."""
