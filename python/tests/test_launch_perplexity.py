"""An evaluation gives the same to the last bit, however many workers share it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tierflow.launch.job import run
from tierflow.launch.options import parse

SCRIPT = Path(__file__).parent.parent / "examples" / "perplexity.py"
TEXT = Path(__file__).parent.parent.parent / "LICENSE-APACHE"
N_WINDOWS = 5


def test_the_perplexity_of_smollm2_over_1_2_and_3_workers(cluster: Any, capfd: pytest.CaptureFixture[str]) -> None:
    model = os.environ.get("TIERFLOW_SMOLLM2")
    if not model:
        pytest.skip("TIERFLOW_SMOLLM2 is not set; `cargo xtask python` sets it")
    told = []
    for n in (1, 2, 3):
        evaluation = [str(SCRIPT), model, str(TEXT), "--window", "48", "--windows", str(N_WINDOWS)]
        run(parse(["--cpu", "--num-workers", str(n), *evaluation]))
        told.append(json.loads(capfd.readouterr().out))
    assert [each.pop("processes") for each in told] == [1, 2, 3]
    assert told[0] == told[1] == told[2]
    assert told[0]["windows"] == list(range(N_WINDOWS)) and told[0]["tokens"] == N_WINDOWS * 47
    # A model that reads English, not one that guesses among 49152 tokens.
    assert 1 < told[0]["perplexity"] < 100
