"""The text modality of EAREC."""
