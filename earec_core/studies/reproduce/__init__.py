"""Tables of the paper measured anew on a catalog, with the controls that say what a difference is due to."""
