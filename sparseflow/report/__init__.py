"""A run's result as a self-contained page and as a few terminal lines."""

from sparseflow.report.page import write_report
from sparseflow.report.terminal import summary

__all__ = ["summary", "write_report"]
