"""The audio modality of EAREC."""
