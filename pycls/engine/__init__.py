"""The loop and what it keeps: optimisers, schedules, moving averages, meters, evaluation, checkpoints, pictures."""
