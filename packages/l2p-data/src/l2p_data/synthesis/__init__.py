"""Image synthesis (sec. 3.2): prompts x seeds become checked images in shards."""
