"""Flags, signals and TensorFlow's start, for the scripts."""
