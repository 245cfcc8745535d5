"""What a training run reports: metrics, trackers, samples, held-out loss."""
