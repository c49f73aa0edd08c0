"""ROUGE-L, ranking and statistics."""
