from __future__ import annotations

from pathlib import Path

import tiny_training
import torch
import warm
from tiny_training import train_tiny, weights

from litheseg.models.bundle import load_bundle

OPTIONS = (
    "--model.args={norm: group, dropout: 0}",
    "--data.batch_size=4",
    "--optimizer.name=sgd",
    "--optimizer.lr=0.05",
    "--optimizer.clip=1",
    "--objectives.dice={loss: dice, weight: 0.5}",
    "--objectives.head={loss: boundary-head, weight: 0.5}",
    "--objectives.cwd={loss: channel-wise, teacher: wider}",
)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same global batch, dealt to two processes whose halves hold unequal numbers of labels and borders."""
    one, two = tmp_path / "one", tmp_path / "two"
    expected = train_tiny(one, *OPTIONS)
    done = warm.run([tiny_training.__file__, two, *OPTIONS, "--trainer.devices=2"], env=tiny_training.environment())
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\nepoch ") == 2 and done.stdout == ""  # the first process alone speaks
    trained = weights(two)
    assert trained.keys() == weights(one).keys()
    for name, value in weights(one).items():
        torch.testing.assert_close(
            trained[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    scores = load_bundle(two / "model.safetensors").header.metrics
    for width, score in expected.scores.items():
        assert abs(scores[f"{width:g}"]["miou"] - score.miou) < 1e-3
    curves = [(folder / "metrics.csv").read_text().splitlines() for folder in (one, two)]
    assert curves[0][0] == curves[1][0]
    for ours, theirs in zip(curves[0][1:], curves[1][1:], strict=True):
        ours, theirs = ([float(cell) for cell in row.split(",")] for row in (ours, theirs))
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-3, atol=1e-3)
