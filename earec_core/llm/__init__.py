"""The language model: loading, prompts, adapters on it."""
