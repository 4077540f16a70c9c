"""The page a person reads after a run, made from the run's files alone."""
