"""A run's network against closed forms, on disk: what `analysis.compare` does."""
