"""How good samples are: the distances of `analysis.metrics`, on files."""
