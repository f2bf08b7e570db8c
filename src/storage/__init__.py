"""Files and folders: paths, checkpoints, run folders, encoded data."""
