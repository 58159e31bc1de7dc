"""Writes base/rules.yml, the Prometheus rules for the operator: `python deploy/kubernetes/generate.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import indent

HERE = Path(__file__).parent
HEAD = """\
# Made by `python deploy/kubernetes/generate.py` from deploy/prometheus/rules: change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: stream-app
spec:
  groups:
"""


def text() -> str:
    """The file: the groups of all rule files, as they are written there."""
    groups = ""
    for file in sorted((HERE.parent / "prometheus/rules").glob("*.yml")):
        groups += file.read_text(encoding="utf-8").partition("\ngroups:\n")[2]
    return HEAD + indent(groups, "  ")


def main() -> int:
    """Write it."""
    (HERE / "base/rules.yml").write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
