"""The vision modality of EAREC."""
