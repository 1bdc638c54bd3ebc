"""Whether a backend is right: `check_backend` for anybody's, `assert_close` for anybody's tests.

from sparseflow.testing import check_backend
check_backend(MyBackend())
"""

from sparseflow.testing.check import check_backend
from sparseflow.testing.closeness import TOLERANCE, assert_close, relative_error

__all__ = ["TOLERANCE", "assert_close", "check_backend", "relative_error"]
