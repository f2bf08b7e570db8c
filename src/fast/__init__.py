"""Speed; a right result needs nothing of it."""
