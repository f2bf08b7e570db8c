"""What makes the model fast; nothing here is needed for a right result."""
