"""The conformance kit on the backend `cpu`."""

from sparseflow.hardware import backends
from sparseflow.testing import check_backend


def test_cpu_keeps_every_rule() -> None:
    check_backend(backends.get("cpu"))
