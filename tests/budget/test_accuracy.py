from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_budget import CLASSES

from litheseg.budget import measure as room
from litheseg.budget.candidates import Candidate, Variant, default_sizes, paper_costs
from litheseg.budget.measure import Accuracy, Exports
from litheseg.budget.store import Store, data_digest
from litheseg.cost import count
from litheseg.cost.widths import with_widths
from litheseg.data import open_source
from litheseg.errors import DataError, WidthError
from litheseg.evaluation import evaluate
from litheseg.evaluation.bundle import calibrate, open_bundle_data
from litheseg.models.bundle import Bundle, model_digest
from litheseg.nn import extract

SMALL = Variant(0.5, (32, 48), "fp32")


@pytest.fixture
def store(bundle: Bundle, tmp_path: Path) -> Store:
    return Store.of(bundle, tmp_path)


def exports(bundle: Bundle, labelled: Path | None, store: Store) -> Exports:
    return Exports(bundle, store.exports, data=open_bundle_data(bundle, labelled) if labelled else None)


def run(network: Variant) -> Candidate:
    return Candidate(network, "torch", 1)


def test_accuracy_is_that_of_evaluate(bundle: Bundle, labelled: Path, store: Store) -> None:
    """But for logits that are upsampled once here and twice there."""
    data = open_bundle_data(bundle, labelled)
    expected = evaluate(bundle.model(), data.val_dataloader(), widths=(1.0, 0.5))
    accuracy = Accuracy(exports(bundle, labelled, store), store)
    for width in (1.0, 0.5):
        network = Variant(width, (32, 48), "fp32")
        assert accuracy.miou(run(network)) == pytest.approx(expected[width].miou, abs=0.02)
        name, iou = accuracy.worst(run(network)) or ("", -1.0)
        assert iou == pytest.approx(min(expected[width].iou), abs=0.02)
        assert expected[width].iou[CLASSES.names.index(name)] == pytest.approx(iou, abs=0.02)


def test_a_width_in_between_is_calibrated(bundle: Bundle, labelled: Path, store: Store) -> None:
    made = exports(bundle, labelled, store)
    data = open_bundle_data(bundle, labelled)
    reference = extract(calibrate(bundle, data, (0.7,)).model(), 0.7)
    network = made.calibrated(0.7).plain(0.7)
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(network(image), reference(image))
    assert Accuracy(made, store).miou(run(Variant(0.7, (32, 48), "fp32"))) >= 0
    assert bundle.header.available_widths == (1.0, 0.5)


def test_fp32_is_scored_in_pytorch_and_calibrated(
    bundle: Bundle, labelled: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever engines there are for other precisions."""
    monkeypatch.setattr(Exports, "engine", lambda *_: 1 / 0)
    accuracy = Accuracy(exports(bundle, labelled, store), store)
    between = Variant(0.7, (32, 48), "fp32")
    data = open_bundle_data(bundle, labelled)
    calibrated = calibrate(bundle, data, (0.7,))
    expected = evaluate(calibrated.model(), data.val_dataloader(), widths=(0.7,))[0.7].miou
    assert accuracy.miou(run(between)) == pytest.approx(expected, abs=0.02)
    with pytest.raises(ZeroDivisionError):
        accuracy.miou(run(between._replace(precision="int8")))


def test_scores_are_remembered(bundle: Bundle, labelled: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Accuracy(exports(bundle, labelled, store), store).miou(run(SMALL))
    monkeypatch.setattr(room, "score", lambda *_: 1 / 0)
    again = Store.of(bundle, store.folder.parent)
    accuracy = Accuracy(exports(bundle, labelled, again), again)
    assert accuracy.miou(run(SMALL)) == first
    with pytest.raises(ZeroDivisionError):
        accuracy.miou(run(SMALL._replace(size=(16, 24))))
    [mask, *_] = (labelled / "masks" / "val").glob("*.png")
    before = mask.stat()
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(ZeroDivisionError):  # a mask that was touched may hold other labels
        Accuracy(exports(bundle, labelled, again), again).miou(run(SMALL))


def test_without_data_the_headers_scores_count(bundle: Bundle, store: Store) -> None:
    accuracy = Accuracy(exports(bundle, None, store), store)
    assert "no labelled data" in accuracy.origin
    assert accuracy.miou(run(SMALL)) == 0.6
    assert accuracy.known(SMALL)
    for other in (SMALL._replace(width=0.7), SMALL._replace(size=(16, 24)), SMALL._replace(precision="int8")):
        assert not accuracy.known(other)


def test_neither_data_nor_scores(bundle: Bundle, store: Store) -> None:
    silent = Bundle(replace(bundle.header, metrics={}), bundle.state_dict)
    with pytest.raises(DataError, match="--data"):
        Accuracy(exports(silent, None, store), store)


def test_a_store_keeps_timings_per_host(bundle: Bundle, store: Store, tmp_path: Path) -> None:
    store.samples["a"] = [1.0, 2.0]
    store.save_samples()
    assert Store.of(bundle, tmp_path).samples["a"] == [1.0, 2.0]
    assert Store.of(bundle, tmp_path, fresh=True).samples == {}
    [file] = store.folder.glob("timings-*.json")
    file.write_text("damaged")
    assert Store.of(bundle, tmp_path).samples == {}


def test_digests_tell_models_and_data_apart(bundle: Bundle, labelled: Path) -> None:
    digest = model_digest(bundle)
    assert model_digest(Bundle(replace(bundle.header, metrics={}), bundle.state_dict)) == digest
    assert model_digest(with_widths(bundle, [0.7])) == digest, "further widths change no other"
    changed = {name: value + 1 if "classifier" in name else value for name, value in bundle.state_dict.items()}
    assert model_digest(Bundle(bundle.header, changed)) != digest
    source = open_source("auto", labelled)
    assert data_digest(source, "val") == data_digest(source, "val") != data_digest(source, "train")


def test_costs_on_paper(bundle: Bundle) -> None:
    int8 = SMALL._replace(precision="int8")
    costs = paper_costs(bundle, [SMALL, int8, Variant(0.7, (16, 24), "fp32")])
    counted = count(bundle.plain(0.5), (32, 48))
    assert costs[SMALL]["macs"] == costs[int8]["macs"] == counted.macs
    assert costs[SMALL]["model_size"] == 4 * counted.params == 4 * costs[int8]["model_size"]
    assert costs[SMALL]["memory"] == 4 * counted.params + counted.peak_activation_bytes
    with pytest.raises(WidthError):
        paper_costs(bundle, [SMALL._replace(width=0.2)])


def test_sizes_to_try() -> None:
    assert default_sizes((180, 240)) == ((180, 240), (136, 176), (88, 120))
    assert default_sizes((8, 8)) == ((8, 8),)
