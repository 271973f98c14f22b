"""The name of `grader.adapters` in notebooks of lab 09 that were handed out before it was renamed."""

from grader.adapters import FILES, grade, save_adapter, write_task

__all__ = ["FILES", "grade", "save_adapter", "write_task"]
