"""Measure one thing of litheseg that a page of the documentation states.

python benchmarks/measure                    # what can be measured
python benchmarks/measure int8 --help
python benchmarks/measure grouped_latency --output benchmarks/results/grouped_latency.jsonl
"""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
SHARED = ("common", "contenders", "peer_models", "runtimes")
PROGRAMS = sorted(path.stem for path in HERE.glob("[a-z]*.py") if path.stem not in SHARED)


def main() -> None:
    """Run the program that is named, or list all."""
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else ""
    if name in PROGRAMS:
        sys.argv = [f"benchmarks/measure {name}", *sys.argv[2:]]
        import_module(f"measure.{name}").main()
        return
    print(__doc__)
    for program in PROGRAMS:
        text = ast.get_docstring(ast.parse((HERE / f"{program}.py").read_text())) or ""
        print(f"{program:16} {text.splitlines()[0]}")
    sys.exit(0 if name in ("", "__help") else f"there is no '{name}'")


if __name__ == "__main__":
    main()
