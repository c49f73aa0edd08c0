"""The demo: the whole method on data that ships inside packages, as commands that anybody could type."""

from earec_core.studies.demo.run import Done, Stage, run, stages

__all__ = ["Done", "Stage", "run", "stages"]
