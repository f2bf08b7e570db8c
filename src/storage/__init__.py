"""Files: paths, checkpoints, run folders, encoded data."""
