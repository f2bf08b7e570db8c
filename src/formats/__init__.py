"""Models in other formats: Hugging Face, SavedModel."""
