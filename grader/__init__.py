"""The grader of the labs: `check` in a notebook, `python -m grader` in a shell."""

from grader.check import check

__all__ = ["check"]
