from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import registered
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from litheseg.errors import BundleError, LithesegError, WidthError
from litheseg.masks.classes import Classes
from litheseg.models import MODELS, SegmentationModel
from litheseg.models.bundle import FORMAT_VERSION, Bundle, BundleHeader, content_digest, load_bundle, save_bundle
from litheseg.nn import recalibrate, set_width, slim

CLASSES = Classes(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))


class _Tiny(SegmentationModel):
    training_only = ("aux_head", "boundary_head")

    def __init__(self, num_classes: int, channels: int, aux_head: bool, boundary_head: bool) -> None:
        super().__init__(num_classes)
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.aux_head = nn.Conv2d(channels, num_classes, 1) if aux_head else None
        self.boundary_head = nn.Conv2d(channels, 1, 1) if boundary_head else None

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.stem(image)
        result = {"logits": self.classifier(features), "features": features}
        if self.training and self.aux_head is not None:
            result["aux"] = self.aux_head(features)
        return result


def _tiny(
    num_classes: int,
    *,
    channels: int = 32,
    aux_head: bool = True,
    boundary_head: bool = False,
    pretrained: str = "none",
) -> _Tiny:
    assert pretrained == "none", "a bundle must never fetch weights"
    return _Tiny(num_classes, channels, aux_head, boundary_head)


_registered = registered(tiny=_tiny)


def _header(**changes: Any) -> BundleHeader:
    fields: dict[str, Any] = {
        "architecture": {"name": "tiny", "args": {"channels": 32}},
        "classes": CLASSES,
        "widths": (1.0, 0.5),
        "size": (32, 48),
        "resizes": False,
        "metrics": {"0.5": {"miou": 0.5, "iou": (0.1, float("nan"))}},
        "recipe": {"seed": np.int64(3), "root": Path("data")},
        "provenance": {"licence": "CC-BY-4.0", "steps": np.float32(1.5)},
    }
    return BundleHeader(**{**fields, **changes})


def _model() -> SegmentationModel:
    torch.manual_seed(1)
    model = _tiny(3)
    slim(model, (1.0, 0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.train()
    model(torch.randn(4, 3, 16, 16))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_bundle(path, _model(), _header())
    return path


def _rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a bundle without renewing the checksum."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name).clone() for name in file.keys()}
    content = json.loads(metadata["litheseg"])
    changed = change(content["header"])
    metadata["litheseg"] = json.dumps({**content, "header": content["header"] if changed is None else changed})
    save_file(state, path, metadata)


# --- round trip


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_round_trip_is_exact_at_every_width(tmp_path: Path, width: float) -> None:
    model, image = _model(), torch.randn(2, 3, 17, 23)
    save_bundle(tmp_path / "m.safetensors", model, _header())
    loaded = load_bundle(tmp_path / "m.safetensors").model()
    assert not loaded.training and not any(child.training for child in loaded.modules())
    for network in (model.eval(), loaded):
        set_width(network, width)
    assert torch.equal(model(image), loaded(image))


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_half_precision_on_disk_gives_the_labels_of_rounded_weights(tmp_path: Path, width: float) -> None:
    model, image = _model().eval(), torch.randn(2, 3, 17, 23)
    whole = save_bundle(tmp_path / "whole.safetensors", model, _header())
    half = save_bundle(tmp_path / "half.safetensors", model, _header(), half=True)
    with safe_open(tmp_path / "half.safetensors", "np") as file:
        assert {file.get_tensor(name).dtype.name for name in file.keys()} == {"float16", "float32", "int64"}
    loaded = load_bundle(tmp_path / "half.safetensors")
    assert all(value.dtype in (torch.float32, torch.int64) for value in loaded.state_dict.values())
    for name, value in whole.state_dict.items():  # NumPy rounds the same way
        rounded = value.numpy().astype(np.float16).astype(np.float32) if value.ndim > 1 else value.numpy()
        assert np.array_equal(loaded.state_dict[name].numpy(), rounded), name
        assert torch.equal(half.state_dict[name], loaded.state_dict[name]), "what was returned is what is read"
    set_width(model, width)
    logits, given = model(image), loaded.plain(width)(image)
    rounding = 2**-10 * float(logits.detach().abs().max())
    assert 0 < (logits - given).abs().max() < rounding
    sure = logits.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] > 2 * rounding
    assert sure.float().mean() > 0.9 and torch.equal(logits.argmax(1)[sure], given.argmax(1)[sure])


def test_what_half_precision_cannot_hold_stays_whole(tmp_path: Path) -> None:
    model = _model()
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e5  # type: ignore[union-attr, operator]
        model.stem[1].norms[0].running_var[0] = 1e-9  # type: ignore[index, union-attr]
    save_bundle(tmp_path / "half.safetensors", model, _header(), half=True)
    state = load_bundle(tmp_path / "half.safetensors").state_dict
    assert state["classifier.weight"][0, 0] == 1e5 and state["stem.1.norms.0.running_var"][0] == torch.tensor(1e-9)


def test_header_comes_back_equal(saved: Path) -> None:
    header = load_bundle(saved).header
    expected = _header(
        architecture={"name": "tiny", "args": {"channels": 32, "aux_head": False, "boundary_head": False}}
    )
    assert header == expected
    assert header.metrics == {"0.5": {"miou": 0.5, "iou": [0.1, None]}}
    assert header.recipe == {"seed": 3, "root": "data"}
    assert (header.num_classes, header.available_widths) == (3, (1.0, 0.5))


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    model = _model()
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_bundle(first, model, _header())
    bundle = load_bundle(first)
    save_bundle(second, bundle.model(), bundle.header)
    assert first.read_bytes() == second.read_bytes()


def test_save_returns_what_load_reads_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = _model()
    set_width(model, 0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    returned = save_bundle(tmp_path / "m", model, _header())
    loaded = load_bundle(tmp_path / "m.safetensors")  # the ending was added
    assert returned.header == loaded.header and returned.path == loaded.path
    assert returned.state_dict.keys() == loaded.state_dict.keys()
    assert all(torch.equal(value, loaded.state_dict[name]) for name, value in returned.state_dict.items())
    assert model.training and model.aux_head is not None and model.width_dial.width == 0.5
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_training_heads_and_initial_weights_stay_out(tmp_path: Path) -> None:
    header = _header(architecture={"name": "tiny", "args": {"aux_head": True, "pretrained": "auto"}})
    bundle = save_bundle(tmp_path / "m.safetensors", _model(), header)
    assert bundle.header.architecture["args"] == {"aux_head": False, "boundary_head": False}
    assert not any("head" in name for name in bundle.state_dict)
    assert load_bundle(tmp_path / "m.safetensors").model().aux_head is None


def test_calibrated_widths_are_kept(tmp_path: Path) -> None:
    model = _model()
    recalibrate(model, [torch.randn(2, 3, 16, 16)], [0.75])
    save_bundle(tmp_path / "m.safetensors", model, _header(calibrated_widths=(0.75,)))
    bundle, image = load_bundle(tmp_path / "m.safetensors"), torch.randn(1, 3, 8, 8)
    loaded = bundle.model()
    for network in (model.eval(), loaded):
        set_width(network, 0.75)
    assert torch.equal(model(image), loaded(image))
    torch.testing.assert_close(bundle.plain(0.75)(image), model(image))


def test_a_plain_model_is_a_model_of_one_width(tmp_path: Path) -> None:
    model = _tiny(3, boundary_head=True)
    bundle = save_bundle(tmp_path / "m.safetensors", model, _header(widths=(1.0,)))
    image = torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(bundle.plain(1.0)(image), model.eval()(image))


def test_non_contiguous_and_shared_tensors(tmp_path: Path) -> None:
    model = _tiny(32)  # as many classes as channels: classifier and auxiliary head can share
    with torch.no_grad():
        model.classifier.weight = nn.Parameter(torch.randn(32, 32).t()[:, :, None, None])
        model.stem[1].bias = model.stem[1].weight
    assert not model.classifier.weight.is_contiguous()
    classes = Classes.from_names(f"c{i}" for i in range(32))
    save_bundle(tmp_path / "m.safetensors", model, _header(widths=(1.0,), classes=classes))
    image = torch.randn(1, 3, 8, 8)
    loaded = load_bundle(tmp_path / "m.safetensors").model()
    torch.testing.assert_close(loaded(image), model.eval()(image))


def test_plain_has_its_width_and_unknown_widths_are_named(saved: Path) -> None:
    bundle = load_bundle(saved)
    assert bundle.plain(0.5).stem[0].out_channels == 16
    with pytest.raises(WidthError, match=r"model\.safetensors: no width 0\.3; available: 1, 0\.5"):
        bundle.plain(0.3)


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    state = torch.get_rng_state()
    load_bundle(saved).model()
    assert torch.equal(state, torch.get_rng_state())


# --- files that cannot be loaded


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read .*nothing\.safetensors: No such file"):
        load_bundle(tmp_path / "nothing.safetensors")
    with pytest.raises(BundleError, match="cannot read"):
        load_bundle(tmp_path)


def test_every_truncation_is_one_bundle_error(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"model\.safetensors.*truncated"):
            load_bundle(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        load_bundle(saved)


def test_no_flipped_byte_goes_unnoticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        broken = bytearray(whole)
        broken[position] ^= 0x21
        saved.write_bytes(broken)
        with pytest.raises(BundleError, match=r"model\.safetensors"):
            load_bundle(saved)


@pytest.mark.parametrize(
    "content", [b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), struct.pack("<Q", 2) + b"[]", b"\xff" * 64]
)
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"foreign\.safetensors is no litheseg model"):
        load_bundle(path)


def test_a_safetensors_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(BundleError, match=r"other\.safetensors is no litheseg model"):
        load_bundle(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(BundleError, match="is no litheseg model"):
        load_bundle(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "attack.safetensors"
    torch.save({"state_dict": Attack()}, path)
    with pytest.raises(BundleError, match="is no litheseg model"):
        load_bundle(path)
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(BundleError, match="is no litheseg model"):
        load_bundle(path)
    assert not (tmp_path / "owned").exists()


def test_a_newer_file_asks_for_an_upgrade_whatever_its_fields(saved: Path) -> None:
    _rewrite(saved, lambda header: header.update(format_version=FORMAT_VERSION + 1, invention=1))
    with pytest.raises(BundleError, match=r"model\.safetensors: .*newer litheseg .*pip install --upgrade litheseg"):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("mean") and None, "lacks fields: mean"),
        (lambda h: h.update(invention=1), "has unknown fields: invention"),
        (lambda h: h.update(format_version="1"), "format_version '1'"),
        (lambda h: h.update(format_version=True), "format_version True"),
        (lambda h: [h], "no JSON object"),
        (lambda h: h.update(widths=[]), "'widths' is empty"),
        (lambda h: h.update(widths=[1.0, 1.5]), r"'widths' must hold different widths in \(0, 1\]"),
        (lambda h: h.update(widths="1.0"), "'widths' must be a list"),
        (lambda h: h.update(calibrated_widths=[0.5]), "share a width"),
        (lambda h: h.update(std=[0.1, 0.0, 0.1]), "'std'"),
        (lambda h: h.update(mean=[0.1, 0.2]), "'mean' must be 3 values"),
        (lambda h: h.update(mean=[0.1, 0.2, "x"]), "'mean' must hold finite numbers"),
        (lambda h: h.update(mean=[0.1, 0.2, float("nan")]), "'mean' must hold finite numbers"),
        (lambda h: h.update(mean=[0.1, 0.2, 10**400]), "'mean' must hold finite numbers"),
        (lambda h: h.update(size=[0, 4]), "'size'"),
        (lambda h: h.update(divisor=1.5), "'divisor'"),
        (lambda h: h.update(metrics=[]), "'metrics' must be a mapping"),
        (lambda h: h.update(architecture={"name": "tiny"}), "'architecture'"),
        (lambda h: h.update(architecture={"name": ["tiny"], "args": {}}), "'architecture'"),
        (lambda h: h["classes"].pop("colors") and None, "'classes'"),
        (lambda h: h["classes"].update(colors=[[0, 0, 300]] * 3), "0 to 255"),
        (lambda h: h["classes"].update(names=["a", "a", "b"]), "'classes'"),
        (lambda h: h["classes"].update(names=["a"]), "'classes'"),
        (lambda h: h["classes"].update(names=[], colors=[]), "'classes' is empty"),
    ],
)
def test_wrong_headers(saved: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    _rewrite(saved, change)
    with pytest.raises(BundleError, match=rf"(?s)model\.safetensors: .*{message}.*export the model anew"):
        load_bundle(saved)


def test_an_edited_header_fails_its_checksum(saved: Path) -> None:
    _rewrite(saved, lambda header: header.update(metrics={"1.0": {"miou": 0.99}}))
    with pytest.raises(BundleError, match="does not match its checksum"):
        load_bundle(saved)


def test_an_unknown_architecture_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(MODELS, "tiny")
    monkeypatch.setitem(MODELS, "tiny2", _tiny)
    with pytest.raises(BundleError, match=r"model\.safetensors: unknown architecture 'tiny'\. Did you mean 'tiny2'"):
        load_bundle(saved)


def _bundle(saved: Path, **changes: Any) -> Bundle:
    bundle = load_bundle(saved)
    state = changes.pop("state_dict", bundle.state_dict)
    return Bundle(dataclasses.replace(bundle.header, **changes), state, bundle.path)


@pytest.mark.parametrize("arguments", [{"nonsense": 1}, {"channels": "many"}, {"channels": -1}, {"channels": [1]}])
def test_arguments_that_build_nothing(saved: Path, arguments: dict[str, Any]) -> None:
    bundle = _bundle(saved, architecture={"name": "tiny", "args": arguments})
    with pytest.raises(BundleError, match=r"model\.safetensors: its architecture cannot be built"):
        bundle.model()


def test_weights_that_do_not_fit(saved: Path) -> None:
    state = dict(load_bundle(saved).state_dict)
    name = min(key for key in state if key.endswith("weight"))
    for wrong in (
        {key: value for key, value in state.items() if key != name},
        {**state, "extra.weight": torch.zeros(1)},
        {**state, name: torch.zeros(1, 2, 3, 4)},
    ):
        with pytest.raises(BundleError, match=r"model\.safetensors: its weights do not fit its architecture 'tiny'"):
            _bundle(saved, state_dict=wrong).model()


# --- files that lie


def _resaved(saved: Path, change: Callable[[dict[str, Tensor]], Any], **header: Any) -> Path:
    """A file with another content and a checksum that fits, as somebody with an editor for it would make."""
    bundle = load_bundle(saved)
    state = {name: value.clone() for name, value in bundle.state_dict.items()}
    change(state)
    text = dataclasses.replace(bundle.header, **header).to_json()
    entry = {"header": json.loads(text), "sha256": content_digest(text, state)}
    save_file(state, saved, {"litheseg": json.dumps(entry, sort_keys=True)})
    return saved


def test_the_checksum_of_the_forger_fits(saved: Path) -> None:
    before = load_bundle(saved)
    again = load_bundle(_resaved(saved, lambda state: None))
    assert again.header == before.header
    again.model()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("classifier.weight", lambda t: t.fill_(float("nan")), "holds infinite or undefined numbers"),
        ("stem.0.weight", lambda t: t.index_fill_(0, torch.tensor([3]), float("inf")), "holds infinite or undefined"),
        ("stem.1.norms.1.running_var", lambda t: t.neg_(), "is negative where a variance is expected"),
        ("stem.0.weight", lambda t: t > 0, "is bool, where real numbers are expected"),
        ("stem.0.weight", lambda t: t.to(torch.int8), "is int8, where real numbers are expected"),
        ("stem.0.weight", lambda t: t.bfloat16(), "is bfloat16, where float32 or float16 is expected"),
        ("stem.0.weight", lambda t: t.double(), "is float64, where float32 or float16 is expected"),
    ],
)
def test_weights_that_are_no_numbers_to_compute_with(
    saved: Path, name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    _resaved(saved, lambda state: state.update({name: change(state[name])}))
    with pytest.raises(BundleError, match=rf"model\.safetensors: '{name}' {message}"):
        load_bundle(saved)


def test_a_counter_of_another_type_is_not_cast(saved: Path) -> None:
    name = "stem.1.norms.0.num_batches_tracked"
    _resaved(saved, lambda state: state.update({name: state[name].float()}))
    with pytest.raises(BundleError, match=rf"'{name}' is torch\.float32, where torch\.int64 is expected"):
        load_bundle(saved).model()


def test_a_model_that_did_not_train_is_not_saved(tmp_path: Path) -> None:
    model = _model()
    with torch.no_grad():
        model.classifier.weight[0] = float("nan")
    with pytest.raises(BundleError, match=r"'classifier\.weight' holds infinite or undefined numbers"):
        save_bundle(tmp_path / "m.safetensors", model, _header())
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_types_is_stored_in_float32(tmp_path: Path) -> None:
    save_bundle(tmp_path / "m.safetensors", _model().double(), _header())
    state = load_bundle(tmp_path / "m.safetensors").state_dict
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


def test_a_model_file_has_the_permissions_of_any_file(saved: Path) -> None:
    (saved.parent / "usual").write_bytes(b"")
    assert saved.stat().st_mode == (saved.parent / "usual").stat().st_mode


# --- files that cannot be written


def test_a_header_that_does_not_describe_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for header, message in (
        (_header(widths=(1.0, 0.25)), "the model has"),
        (_header(divisor=4), "the model has"),
        (_header(calibrated_widths=(0.75,)), "the model has"),
        (_header(classes=Classes.from_names(["a", "b"])), "do not fit"),
        (_header(architecture={"name": "unknown", "args": {}}), "unknown architecture"),
    ):
        with pytest.raises(BundleError, match=message):
            save_bundle(path, _model(), header)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    blocker = tmp_path / "m.safetensors"
    blocker.mkdir()
    with pytest.raises(LithesegError, match=r"cannot write .*m\.safetensors"):
        save_bundle(blocker, _model(), _header())
    assert list(tmp_path.iterdir()) == [blocker]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(LithesegError, match="cannot write"):
        save_bundle(folder / "m.safetensors", _model(), _header())


def test_a_failed_save_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fails(_state: object, path: Path, _metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("litheseg.models.bundle.save_file", fails)
    with pytest.raises(LithesegError, match="No space left"):
        save_bundle(saved, _model(), _header())
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_headers_refuse_what_json_cannot_hold() -> None:
    with pytest.raises(BundleError, match="'recipe' holds a Tensor"):
        _header(recipe={"weights": torch.zeros(2)})
