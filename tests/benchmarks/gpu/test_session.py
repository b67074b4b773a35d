"""A session on a machine with a GPU, rehearsed with a stand-in for the runner: wanted, brought back, gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rows
from gpu import jobs as gpu_jobs
from gpu import pack as gpu_pack
from gpu import session, side_by_side
from tiny_camvid import make_camvid

WISHES = Path(__file__).parents[3] / "benchmarks/gpu/wishes.yaml"
RUNNER = """
import argparse, json, pathlib, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("table")
for name in ("protocol", "data", "model", "labelled", "folds", "seeds", "only", "work", "results"):
    parser.add_argument("--" + name)
for name in ("again", "tiny"):
    parser.add_argument("--" + name, action="store_true")
row = parser.parse_args()
if row.only == "a-independent-0.5":
    sys.exit("RuntimeError: it broke")
if row.only == "a-independent-0.75":
    time.sleep(60)
key = f"{row.protocol}-{row.model}-{row.only}-{row.folds}-seed{row.seeds}"
folder = pathlib.Path(row.work) / key
folder.mkdir(parents=True)
(folder / "model.safetensors").touch()
line = {"table": row.table, "key": key, "metrics": {"1": {"miou": 0.5}, "0.5": {"miou": 0.4}}, "tiny": row.tiny}
with open(row.results, "a") as file:
    file.write(json.dumps(line) + "\\n")
"""


def wish(*only: str, folds: tuple[str, ...] = ("0016E5",), **more: Any) -> dict[str, Any]:
    entry = {"table": "slimseg", "protocol": "camvid-seq", "network": "ddrnet", "seeds": [0], "folds": list(folds)}
    return {**entry, "only": list(only), **more}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a session with the given wishes and a stand-in for the runner."""
    monkeypatch.chdir(tmp_path)
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER)
    monkeypatch.setattr(gpu_jobs, "_RUNNER", runner)
    monkeypatch.setattr(session, "_GRACE", 2.0)
    monkeypatch.setattr(side_by_side, "_POLL", 0.02)
    camvid = make_camvid(tmp_path / "camvid", frames=1)

    def call(*wishes: Any, out: str = "out", minutes: float = 1.0, **more: Any) -> int:
        (tmp_path / "wishes.yaml").write_text(json.dumps(wishes))
        given = {"data": camvid, "pack": tmp_path / "pack", "slots": 2, **more}
        return session.run_session(
            minutes=minutes, out=tmp_path / out, work=tmp_path / "work", wishes=tmp_path / "wishes.yaml", **given
        )

    return call


def keys(path: Path) -> list[str]:
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_rows_come_back_with_logs_and_a_table(start: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(wish("a-independent-0.25", "e-next-wider-band", folds=("0016E5", "0001TP"))) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["logs.txt", "rows.jsonl", "table.txt"]
    assert len(keys(out / "rows.jsonl")) == 4 and "=====" in (out / "logs.txt").read_text()
    table = (out / "table.txt").read_text()
    assert table in capsys.readouterr().out and table.count("45.00  camvid-seq-ddrnet-") == 4


def test_a_second_session_goes_on_and_brings_everything_back(start: Any, tmp_path: Path) -> None:
    assert start(wish("a-independent-0.25")) == 0
    assert start(wish("a-independent-0.25", "e-next-wider-band"), out="second") == 0
    assert len(keys(tmp_path / "second/rows.jsonl")) == len(set(keys(tmp_path / "second/rows.jsonl"))) == 2
    assert start(wish("a-independent-0.25"), out="third") == 0 and len(keys(tmp_path / "third/rows.jsonl")) == 2


def test_a_row_that_breaks_is_told_and_the_others_come_back(start: Any, tmp_path: Path) -> None:
    assert start(wish("a-independent-0.5", "e-next-wider-band")) == 1
    assert len(keys(tmp_path / "out/rows.jsonl")) == 1
    table = (tmp_path / "out/table.txt").read_text()
    assert "failed" in table and "RuntimeError: it broke" in table


def test_the_time_limit_ends_it_with_what_is_done(start: Any, tmp_path: Path) -> None:
    assert start(wish("a-independent-0.75", "a-independent-0.25"), minutes=0.15) == 0
    assert len(keys(tmp_path / "out/rows.jsonl")) == 1 and "stopped" in (tmp_path / "out/table.txt").read_text()


def test_a_model_that_cannot_come_along_loses_nothing(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([5, 6])

    def halve(bundle: Path, target: Path, largest: int) -> int:
        target.write_text("half")
        return next(sizes)

    monkeypatch.setattr(session, "halve", halve)
    monkeypatch.setattr(session, "MODELS", 1)
    assert start(wish("a-independent-0.25", "e-next-wider-band", keep=True)) == 0
    assert len(list((tmp_path / "out").glob("*.half.safetensors"))) == 1
    assert len(keys(tmp_path / "out/rows.jsonl")) == 2


def test_without_data_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no CamVid; give --data, or run"):
        session.run_session(minutes=1, out=tmp_path / "out", pack=tmp_path / "pack")


@pytest.mark.parametrize(
    ("memory", "cores", "slots"), [(79.0, 16, 8), (140.0, 64, 8), (None, 2, 1), (23.0, 32, 2), (4.0, 16, 1)]
)
def test_slots_fit_cores_and_memory(memory: float | None, cores: int, slots: int) -> None:
    assert session.slots_of(memory, cores) == slots


def test_rows_say_which_commit_was_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session.packed_commit(tmp_path) is None and "BENCHMARK_COMMIT" not in session.environment(tmp_path, 3)
    content = {"commit": "a" * 40, "digest": gpu_pack.source_digest(session.ROOT)}
    (tmp_path / "pack.json").write_text(json.dumps(content))
    (tmp_path / "site").mkdir()
    environment = session.environment(tmp_path, 3)
    assert (environment["BENCHMARK_COMMIT"], environment["BENCHMARK_PROCESSES"]) == ("a" * 40, "3")
    assert environment["PYTHONPATH"].startswith(f"{tmp_path / 'site'}:{session.ROOT}")
    (tmp_path / "pack.json").write_text(json.dumps(content | {"digest": "other"}))
    assert session.packed_commit(tmp_path) == f"{'a' * 40}-dirty"


# --- wishes ----------------------------------------------------------------------------------------------------------


def wanted(tmp_path: Path, *wishes: Any) -> list[Any]:
    (tmp_path / "wishes.yaml").write_text(json.dumps(wishes))
    return gpu_jobs.read_jobs(tmp_path / "wishes.yaml", gpu_jobs.Place("/data", tmp_path / "work"))


def test_the_committed_wishes_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # in which there are no runs
    monkeypatch.setattr(gpu_jobs, "results", lambda table: tmp_path / table)  # nor results
    jobs = gpu_jobs.read_jobs(WISHES, gpu_jobs.Place("/data", Path("runs/gpu")))
    assert len({job.name for job in jobs}) == len(jobs) > 60
    assert jobs[0].name == "cuda-tests"
    assert all(job.keep and job.name.startswith("camvid-") for job in jobs[1:3])
    first = [job for job in jobs[3:18] if job.bundle]
    assert all("camvid-seq-segmenter" in job.name and job.name.endswith("seed0") for job in first)
    assert sum(job.keep for job in jobs) <= session.MODELS
    made = set()
    for job in jobs:  # whatever a row needs is made by a row before it
        assert all(path in made for path in job.needs)
        made.add(job.bundle)


def test_done_rows_are_left_out_and_others_wanted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = wish("a-independent-0.25", folds=("0016E5", "0001TP")), wish("a-independent-0.25", keep=True)
    jobs = wanted(tmp_path, *twice)
    assert [(job.name.split("-")[-2], job.keep) for job in jobs] == [("0016E5", True), ("0001TP", False)]
    results = tmp_path / "slimseg.jsonl"
    results.write_text(json.dumps({"table": "slimseg", "key": jobs[0].name}) + "\n")
    monkeypatch.setattr(gpu_jobs, "results", lambda table: tmp_path / f"{table}.jsonl")
    assert [job.name for job in wanted(tmp_path, *twice)] == [jobs[1].name]


def test_within_a_fold_rows_come_as_they_are_named(tmp_path: Path) -> None:
    names = ("e-next-wider-band-kl3", "a-independent-1", "a-independent-0.25")
    jobs = wanted(tmp_path, wish(*names, folds=("0001TP", "0016E5")))
    assert [job.name for job in jobs] == [
        f"camvid-seq-ddrnet-{name}-{fold}-seed0" for fold in ("0001TP", "0016E5") for name in names
    ]


def test_teachers_come_before_their_students(tmp_path: Path) -> None:
    entry = {"table": "mgd", "protocol": "camvid-seq-few", "network": "ddrnet", "seeds": [0], "labelled": ["1/16"]}
    jobs = wanted(tmp_path, {**entry, "folds": ["0016E5"], "only": ["mgd", "kd"]})
    ids = [next(word for flag, word in zip(job.words, job.words[1:], strict=False) if flag == "--only") for job in jobs]
    assert ids == ["teacher-deep", "teacher-wide", "mgd", "kd"]
    assert jobs[2].needs == (jobs[0].bundle, jobs[1].bundle) and jobs[3].needs == (jobs[0].bundle,)
    assert "--labelled" in jobs[0].words and "1/16" in jobs[0].words


@pytest.mark.parametrize(
    ("change", "message"),
    [({"netwrok": "ddrnet"}, "unknown 'netwrok'"), ({"only": ["f"]}, "table slimseg has no row 'f'")],
)
def test_a_wish_that_cannot_be_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        wanted(tmp_path, wish() | change)


def test_planning_loads_no_pytorch() -> None:
    code = "import gpu.session, sys; print([name for name in ('torch', 'lightning', 'scipy') if name in sys.modules])"
    folder = Path(rows.__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert answer.stdout.strip() == "[]", answer.stderr
