"""What a recipe brings to the run itself: checkpoints, resume, schedule, seed, data and the run's record."""
