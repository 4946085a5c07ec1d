"""Score estimation as kernel regression: kernels, their regression, when to stop."""
