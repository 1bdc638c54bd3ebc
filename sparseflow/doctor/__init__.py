"""Checks a launch before it waits in a queue: what would fail after hours should be said in seconds."""

from sparseflow.doctor.examine import Launch, examine
from sparseflow.doctor.finding import Finding, failed, table

__all__ = ["Finding", "Launch", "examine", "failed", "table"]
