"""Speed, memory and precision; a right result in float32 needs none of it."""
