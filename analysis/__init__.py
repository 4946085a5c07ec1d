"""Questions about scores: comparisons, figures, reports."""
