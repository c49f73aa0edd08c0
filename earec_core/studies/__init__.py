"""The demo and the tables of the paper; they may name modalities, and nothing imports them."""
