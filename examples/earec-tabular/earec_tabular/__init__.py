"""An item's numbers and categories as a modality of EAREC."""
