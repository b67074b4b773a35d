"""The most wanted missing rows on a machine with a GPU, no network, and little time.

Usage:
    python benchmarks/gpu pack --data data/camvid             # here: what that machine lacks, in benchmarks/gpu-pack/
    python benchmarks/gpu run --minutes 9 --out brought-back  # there, in a copy of this repository with the pack
    python benchmarks/gpu merge brought-back                  # here: checks rows, adds them to benchmarks/results/
    python benchmarks/gpu run --tiny --out /tmp/rehearsal     # anywhere: a rehearsal, seconds a row
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Both may be in a bare copy of the repository, in which nothing is installed.
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.merge import merge
from gpu.pack import pack
from gpu.session import run_session


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    here = Path(__file__).parent
    packing = commands.add_parser("pack", help="gather data and packages in one folder that git ignores")
    packing.add_argument("--data", type=Path, required=True, help="the CamVid folder")
    packing.add_argument("--to", type=Path, default=here.parent / "gpu-pack", help="the folder; made anew")
    packing.add_argument("--machine", type=Path, default=here / "machine.yaml", help="what the machine has already")
    packing.add_argument("--most", type=float, default=60, help="MiB that pack and repository may have together")
    running = commands.add_parser("run", help="do the most wanted missing rows side by side")
    running.add_argument("--minutes", type=float, default=9, help="from the first line of this program to its last")
    running.add_argument("--out", type=Path, required=True, help="folder of what is to be brought back")
    running.add_argument("--pack", type=Path, default=here.parent / "gpu-pack", help="what `pack` made")
    running.add_argument("--data", type=Path, help="the CamVid folder; by default that of the pack")
    running.add_argument("--work", type=Path, default=Path("runs/gpu"), help="where runs are; a second call goes on")
    running.add_argument("--wishes", type=Path, default=here / "wishes.yaml", help="what is wanted, most first")
    running.add_argument("--slots", type=int, help="rows at a time; by default as cores and memory allow, 8 at most")
    running.add_argument("--tiny", action="store_true", help="rehearse with a few steps on tiny images")
    merging = commands.add_parser("merge", help="add the rows that a run brought back")
    merging.add_argument("folder", type=Path, help="the `--out` of a run")
    merging.add_argument("--models", type=Path, help="write the models that came along as model files into this folder")
    merging.add_argument("--again", action="store_true", help="also rows that are there already; the last line counts")
    return parser


def main() -> int:
    """See the module."""
    options = vars(_parser().parse_args())
    command = options.pop("command")
    functions = {"pack": pack, "run": run_session, "merge": merge}
    return functions[command](**options)


if __name__ == "__main__":
    sys.exit(main())
