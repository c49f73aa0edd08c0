"""The behavior modality of EAREC."""
