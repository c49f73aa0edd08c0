"""The checks of the conformance kit, one a clause of the contract; a docstring is the clause."""
