"""Samples, a token at a time: text while it comes, files of prompts."""
