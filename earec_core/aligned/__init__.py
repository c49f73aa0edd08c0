"""The aligned model: a catalog's inputs, its prompts, and stored models put back to work."""
