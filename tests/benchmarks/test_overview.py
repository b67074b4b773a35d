from __future__ import annotations

from overview import overview

ACCURACY = """## Accuracy: `net`, protocol `half`

Targets:

- groups within 2 mIoU of dense: **met** (+0.30 by gradual)
- MGD above others: **open** (over KD not run yet)

Of **grouped** networks: these."""
AGAIN = ACCURACY.replace("half", "whole").replace("**met** (+0.30", "**missed** (-3.00")
COST = "## A step\n\nTarget: a step over another is at most 1.05: **met**.\n\n| a | b |"


def test_each_target_once_with_every_section_that_has_it() -> None:
    told = overview([ACCURACY, AGAIN, COST, "## Nothing\n\nNo target here."])
    _, title, _, head, _, groups, mgd, step = f"\n{told}".splitlines()
    assert title == "## Every target" and head == "| target | state |"
    half, whole = (f"[Accuracy: `net`, protocol `{name}`](#accuracy-net-protocol-{name})" for name in ("half", "whole"))
    assert groups == f"| groups within 2 mIoU of dense | **met**: {half}<br>**missed**: {whole} |"
    assert mgd == f"| MGD above others | **open**: {half}<br>**open**: {whole} |"
    assert step == "| a step over another is at most 1.05 | **met**: [A step](#a-step) |"


def test_without_targets_there_is_no_table() -> None:
    assert overview([]) == overview(["## Nothing\n\nYet."]) == ""
