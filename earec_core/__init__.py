"""EAREC: explainable multi-modality alignment for transferable recommendation.

Importing this package imports nothing heavy; every stage is a module of its own.
"""

__version__ = "0.1.0"
