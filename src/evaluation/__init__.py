"""Log-probabilities, metrics and published test sets."""
