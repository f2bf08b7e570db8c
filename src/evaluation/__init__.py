"""Metrics and test sets."""
