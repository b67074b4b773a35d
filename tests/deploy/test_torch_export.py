"""Archives of torch.export: what is written is plain data, and nothing else is opened."""

from __future__ import annotations

import copy
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import build_tiny, noise, plain_logits

from litheseg.deploy.network import Deployed, deployed
from litheseg.deploy.operators import OPERATORS
from litheseg.deploy.torch_export import check_archive, export_program, load_archive, save_archive
from litheseg.errors import BundleError, LithesegError
from litheseg.masks.image_format import ImageFormat
from litheseg.models.bundle import Bundle

_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def archive(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "network.pt2"
    save_archive(export_program(deployed(bundle, 0.5), None), path, "{}")
    return path


def _rewritten(
    archive: Path, path: Path, changes: dict[str, Callable[[bytes], bytes]], extra: dict[str, bytes]
) -> Path:
    """A copy with entries changed or added, named without the archive's root folder."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        root = source.namelist()[0].split("/")[0]
        for name in source.namelist():
            content = source.read(name)
            change = changes.get(name.removeprefix(f"{root}/"))
            target.writestr(name, content if change is None else change(content))
        for name, content in extra.items():
            target.writestr(f"{root}/{name}", content)
    return path


def _json(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        loaded = json.loads(content)
        change(loaded)
        return json.dumps(loaded).encode()

    return changed


class _Attack:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_it_gives_the_networks_logits_at_any_size(archive: Path, bundle: Bundle) -> None:
    network = load_archive(archive)
    for size in ((1, 1), (24, 32), (65, 97)):
        image = noise(*size)
        logits = network(torch.from_numpy(image)[None])[0].numpy()
        np.testing.assert_allclose(logits, plain_logits(bundle, 0.5, image), rtol=1e-4, atol=1e-5)


def test_no_entry_is_a_pickle_and_pytorch_alone_reads_it(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            content = file.read(name)
            assert not content.startswith((b"\x80\x02", b"\x80\x04", b"PK")), f"{name} is a pickle"
    extra = {"litheseg.json": ""}
    program = torch.export.load(archive, extra_files=extra)
    assert extra == {"litheseg.json": "{}"}
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("batch_norm" in target or "dropout" in target for target in targets)


def test_pickles_are_refused_before_pytorch_sees_them(archive: Path, tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    payload = pickle.dumps(_Attack(owned))
    weights = "data/weights/model_weights_config.json"

    def pickled(config: dict[str, Any]) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    attacks: list[tuple[dict[str, Any], dict[str, bytes]]] = [
        ({"data/sample_inputs/model.pt": lambda _: payload}, {}),
        ({weights: _json(pickled), "data/weights/weight_0": lambda _: payload}, {}),
        ({}, {"data/weights/model.pt": payload}),
        ({}, {"data/constants/model.pt": payload}),
        ({}, {"data/constants/custom_obj_0": payload}),
        ({}, {"data/aotinductor/model/model.so": b"\x7fELF"}),
    ]
    for changes, extra in attacks:
        broken = _rewritten(archive, tmp_path / "attack.pt2", changes, extra)
        with pytest.raises(BundleError, match=r"attack\.pt2 holds '.*', which could run code"):
            load_archive(broken)
    assert not owned.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "torch.hub.load"),
        ("expr_str", "9**9**9**9"),
        ("expr_str", "Pow(Integer(9), Pow(Integer(9), Integer(99)))"),
        ("expr_str", "9" * 100_000),
        ("expr_str", "__import__('os').mkdir('owned')"),
        ("expr_str", "exec(chr(49))"),
        ("name", "x=print('owned')"),
        ("as_name", "x\nprint('owned')"),
    ],
)
def test_graphs_that_ask_for_more_than_arithmetic(archive: Path, tmp_path: Path, key: str, value: str) -> None:
    broken = _with(archive, tmp_path / "attack.pt2", key, value)
    with pytest.raises(BundleError, match="could run code when it is read"):
        check_archive(broken)


@pytest.mark.parametrize(
    "operator",
    ["from_file.default", "manual_seed.default", "rand.default", "save.default", "warn.default"],
)
def test_operators_that_no_network_needs(archive: Path, tmp_path: Path, operator: str) -> None:
    broken = _with(archive, tmp_path / "attack.pt2", "target", f"torch.ops.aten.{operator}")
    with pytest.raises(BundleError, match=rf"attack\.pt2 asks for the operator '{operator}', .* onnx or openvino"):
        load_archive(broken)


def test_every_listed_operator_exists_and_only_computes() -> None:
    for name in OPERATORS:
        packet, _, overload = name.partition(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        kinds = {str(argument.type) for argument in schema.arguments}
        assert "Tensor" in str(kinds), f"{name} computes nothing from tensors"
        assert not {"Generator", "Optional[Generator]"} & kinds, f"{name} draws at random"


class _Strange(torch.nn.Module):
    layout, images = "NHWC", ImageFormat()
    example = Deployed.example

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(image[0, :3, :3].float().permute(2, 0, 1)).view(1, 3, 1, 1)


def test_a_network_with_another_operator_is_not_written(tmp_path: Path) -> None:
    program = export_program(_Strange(), (4, 4))  # type: ignore[arg-type]
    with pytest.raises(LithesegError, match=r"operator 'linalg_det\.default'.* onnx or openvino instead"):
        save_archive(program, tmp_path / "network.pt2", "{}")


def test_small_archives_of_large_files(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        with target.open("archive/extra/bomb", "w") as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))
    with pytest.raises(BundleError, match=r"bomb\.pt2 is damaged.*compressed"):
        load_archive(path)


def test_a_directory_that_counts_the_same_bytes_often(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("x/data/weights/weight_0", bytes(1 << 16))
        for index in range(1, 100):
            entry = copy.copy(target.infolist()[0])
            entry.filename = f"x/data/weights/weight_{index}"
            target.filelist.append(entry)
    with pytest.raises(BundleError, match=r"bomb\.pt2 is damaged.*larger than itself"):
        check_archive(path)


def _with(archive: Path, path: Path, key: str, value: str) -> Path:
    """A copy of which the first text under a key in the graph is another."""
    done: list[str] = []

    def change(content: Any) -> None:
        if isinstance(content, dict):
            if isinstance(content.get(key), str) and not done:
                done.append(content[key])
                content[key] = value
            for entry in content.values():
                change(entry)
        elif isinstance(content, list):
            for entry in content:
                change(entry)

    _rewritten(archive, path, {"models/model.json": _json(change)}, {})
    assert done, f"nothing in the graph is called '{key}'"
    return path


def test_guards_are_code(archive: Path, tmp_path: Path) -> None:
    change = _json(lambda graph: graph.update(guards_code=["__import__('os').mkdir('owned')"]))
    broken = _rewritten(archive, tmp_path / "attack.pt2", {"models/model.json": change}, {})
    with pytest.raises(BundleError, match="could run code"):
        load_archive(broken)


def test_damage_is_one_error(archive: Path, tmp_path: Path) -> None:
    path, whole = tmp_path / "broken.pt2", archive.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"broken\.pt2 is damaged, or no torch\.export archive"):
            load_archive(path)
    with pytest.raises(BundleError, match="export the model anew"):
        load_archive(
            _rewritten(archive, path, {"models/model.json": _json(lambda graph: graph.pop("graph_module"))}, {})
        )
    with pytest.raises(BundleError, match=r"nowhere\.pt2"):
        load_archive(tmp_path / "nowhere.pt2")
