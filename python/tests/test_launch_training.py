"""Training over workers of a Ray cluster: two with a batch each train the adapter of one with twice the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_launch import script

from tierflow.launch.job import run
from tierflow.launch.options import parse

TRAINING = """
import json, sys, tierflow
import numpy as np

model_path, batch_size, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rows = [np.array([(37 * i + 11 * n * n + i * n) % 256 for i in range(12)]) for n in range(8)]
accelerator = tierflow.Accelerator()
model = tierflow.LoraModel(model_path, tierflow.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), seq_len=64, batch_size=batch_size)
optim = tierflow.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
data = tierflow.DataLoader([(row, row) for row in rows], batch_size=batch_size)
model, optim, data = accelerator.prepare(model, optim, data)
losses = []
for epoch in range(2):
    for source, targets in data:
        loss = model(source, targets).loss
        accelerator.backward(loss)
        optim.step()
        optim.zero_grad()
        losses.append(float(accelerator.reduce(np.array(loss.item()), "mean")))
if accelerator.is_main_process:
    np.save(out, model.values())
accelerator.save_state(out + ".state")
alike = len(set(accelerator.gather_object([model.values().tobytes()]))) == 1
accelerator.print(json.dumps([accelerator.num_processes, losses, alike]))
"""

# Sums of f32 in another order, through four steps.
TOLERANCE = 1e-6


def test_two_workers_train_the_adapter_of_one_with_twice_the_batch(
    cluster: Any, models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = script(tmp_path, TRAINING)
    told = []
    for n_workers, batch_size in ((1, 4), (2, 2)):
        out = str(tmp_path / f"{n_workers}.npy")
        run(parse(["--cpu", "--num-workers", str(n_workers), path, str(models / "tiny"), str(batch_size), out]))
        told.append(json.loads(capfd.readouterr().out))
        assert (tmp_path / f"{n_workers}.npy.state" / "accelerator.json").is_file()
    (one, losses, _), (two, others, alike) = told
    assert (one, two, alike, len(losses)) == (1, 2, True, 4)
    assert others == pytest.approx(losses, abs=1e-6) and losses[-1] < losses[0]
    adapters = [np.load(tmp_path / f"{n_workers}.npy") for n_workers in (1, 2)]
    assert np.abs(adapters[0] - adapters[1]).max() < TOLERANCE
