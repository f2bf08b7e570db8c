"""What is here changes speed, not results."""
