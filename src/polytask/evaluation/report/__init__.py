"""One page from run and compare directories: `write_report`."""

from polytask.evaluation.report.page import write_report

__all__ = ["write_report"]
