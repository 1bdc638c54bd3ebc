"""Fills docs/stream.md with what `sparseflow bench --backend stream --validate` prints.

python tools/stream_table.py
"""

from __future__ import annotations

import re
from pathlib import Path

from sparseflow.bench.stream import bench_stream

PAGE = Path(__file__).parent.parent / "docs" / "stream.md"


def main() -> None:
    """Replaces what stands between the two marks."""
    table = bench_stream(validate=True)["text"]
    parts = re.compile(r"(<!-- validate: .*? -->\n).*?(<!-- /validate -->)", re.DOTALL)
    PAGE.write_text(parts.sub(lambda found: f"{found[1]}{table}\n{found[2]}", PAGE.read_text()))


if __name__ == "__main__":
    main()
