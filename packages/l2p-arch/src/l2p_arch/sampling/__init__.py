"""From noise to images: the pipeline, its schedule, guidance and initial state."""
