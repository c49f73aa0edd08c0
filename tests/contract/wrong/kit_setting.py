"""A spec whose module changes the environment."""

import os

import kit_specs

os.environ["KIT_SETTING"] = "1"
SPEC = kit_specs.wrong_setting
