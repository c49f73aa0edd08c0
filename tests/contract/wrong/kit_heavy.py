"""A spec whose module imports what is heavy."""

import kit_specs
import numpy  # noqa: F401

SPEC = kit_specs.wrong_heavy
