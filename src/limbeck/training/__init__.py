"""Training on lightning: the module, optimisers and schedules, and what happens around a step."""
