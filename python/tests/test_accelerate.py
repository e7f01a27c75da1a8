"""`tierflow.accelerate` against what Accelerate 1.15.0 itself gave (`tests/golden/device_maps.json`), and over checkpoints."""

from __future__ import annotations

import json
import logging
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest

import tierflow
from tierflow import accelerate, errors

GOLDEN = json.loads((Path(__file__).parents[2] / "tests/golden/device_maps.json").read_text())


def form(model):
    # transformers ties the embedding and the head where a config does not say otherwise; what has no config is no model of theirs.
    ties = model.get("config") is not None and model["config"].get("tie_word_embeddings", True)
    return {**model["tree"], "no_split_modules": model["no_split_modules"], "config_ties_weights": bool(ties)}


@pytest.fixture(scope="module")
def trees():
    return {model["id"]: accelerate._tree(form(model)) for model in GOLDEN["models"]}


def test_every_map_is_accelerates(trees, caplog):
    caplog.set_level(logging.INFO, logger="tierflow")
    assert len(GOLDEN["cases"]) > 300
    for case in GOLDEN["cases"]:
        tree = trees[case["model"]]
        retype = {"dtype": case["dtype"], "special_dtypes": dict(case.get("special_dtypes") or {})}
        classes = case["no_split_module_classes"]
        budgets = accelerate.get_max_memory(dict(map(tuple, case["max_memory"])))
        caplog.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if case["mode"] != "sequential":
                low_zero = case["mode"] == "balanced_low_0"
                budgets = accelerate.get_balanced_memory(tree, budgets, classes, **retype, low_zero=low_zero)
                if case["balanced_max_memory"] is not None:
                    assert budgets == dict(map(tuple, case["balanced_max_memory"])), case["id"]
            options = {"offload_buffers": case.get("offload_buffers", False), "fallback_allocation": case.get("fallback_allocation", False)}
            found = accelerate.infer_auto_device_map(tree, budgets, classes, **retype, **options)
        assert isinstance(found, OrderedDict)
        assert dict(found) == dict(map(tuple, case["device_map"])), case["id"]
        assert [[type(one.message).__name__, str(one.message)] for one in warned] == case.get("warnings", []), case["id"]
        logs = [[record.levelname, record.getMessage()] for record in caplog.records]
        assert logs == case.get("logs", []), case["id"]
        caplog.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = accelerate.infer_auto_device_map(tree, budgets, classes, **retype, **options, clean_result=False)
        assert list(raw.items()) == list(map(tuple, case["device_map_unclean_in_assignment_order"])), case["id"]


def test_sizes_are_accelerates(trees):
    for model in GOLDEN["models"]:
        expected = model["calculate_maximum_sizes"]
        total, (largest, names) = accelerate.calculate_maximum_sizes(trees[model["id"]])
        assert (total, largest, names) == (expected["total"], expected["largest_layer_bytes"], expected["largest_layer_names"])
        for dtype, sizes in model.get("module_sizes_layer0_and_top", {}).items():
            found = accelerate.compute_module_sizes(trees[model["id"]], dtype=dtype)
            assert {name: found.get(name, 0) for name in sizes} == sizes, (model["id"], dtype)


def test_budgets_are_accelerates():
    for helper in GOLDEN["helpers"]["get_max_memory_with_input"]:
        given = dict(map(tuple, helper["in"]))
        if "ok" in helper["out"]:
            assert list(accelerate.get_max_memory(given).items()) == list(map(tuple, helper["out"]["ok"]))
        else:
            with pytest.raises(ValueError) as refused:
                accelerate.get_max_memory(given)
            assert helper["out"]["msg"] in str(refused.value)


def test_free_memory_is_that_of_this_machine():
    free = accelerate.get_max_memory()
    assert free["cpu"] > 0 and "disk" not in free
    assert list(free)[-1] == "cpu"


# Over checkpoints.


def test_a_checkpoints_headers_are_enough(models):
    path = models / "llama-8b"
    sizes = accelerate.compute_module_sizes(path)
    assert sizes[""] == sum(sizes[name] for name in ("model", "lm_head")) == 16_060_522_496 + 2 * 64 * 4
    found = accelerate.infer_auto_device_map(path, {0: "6GiB", "cpu": "6GiB"}, no_split_module_classes=["LlamaDecoderLayer"])
    assert list(dict.fromkeys(found.values())) == [0, "cpu", "disk"]
    assert found["model.embed_tokens"] == 0
    accelerate.check_device_map(path, found)
    with pytest.raises(ValueError, match="does not give any device for the following parameters: lm_head.weight"):
        accelerate.check_device_map(path, {"model": 0})
    balanced = accelerate.get_balanced_memory(path, {0: "40GiB", 1: "40GiB"})
    assert balanced[0] < balanced[1] == 40 << 30


def test_memory_is_estimated_as_accelerate_does(models):
    n_parameters = 8_030_261_248
    rows = {row["dtype"]: row for row in accelerate.estimate_memory(models / "llama-8b")}
    assert list(rows) == ["float32", "float16", "int8", "int4"]
    total = rows["float32"]["total_size"]
    assert total == n_parameters * 4 + 2 * 64 * 4
    assert rows["float32"]["largest_layer"] == 128256 * 4096 * 4
    assert (rows["float16"]["total_size"], rows["int4"]["total_size"]) == (total / 2, total / 8)
    assert (rows["float32"]["training"], rows["float16"]["training"], rows["int8"]["training"]) == (total * 4, total * 2, None)
    with pytest.raises(errors.ArgumentError, match="float8"):
        accelerate.estimate_memory(models / "llama-8b", dtypes=["float8"])


def test_a_checkpoint_is_loaded_where_the_map_says(models, tmp_path):
    path = models / "tiny"
    sizes = accelerate.compute_module_sizes(path)
    inferred = accelerate.infer_auto_device_map(path, {"cpu": sizes[""] // 2}, no_split_module_classes=["LlamaDecoderLayer"])
    assert set(inferred.values()) == {"cpu", "disk"}
    with accelerate.load_checkpoint_and_dispatch(path, device_map=inferred, offload_folder=tmp_path, device="cpu", ctx_size=64) as engine:
        assert isinstance(engine, tierflow.Engine)
        assert "disk" in engine.hf_device_map.values()
        streamed = engine.generate("x", max_tokens=8, temperature=0)
    assert list(tmp_path.iterdir()) == []
    with accelerate.load_checkpoint_and_dispatch(object(), checkpoint=path, device_map="auto", device="cpu", ctx_size=64) as engine:
        assert engine.generate("x", max_tokens=8, temperature=0) == streamed
    with pytest.raises(errors.ArgumentError, match="checkpoint"):
        accelerate.load_checkpoint_and_dispatch(object())


# Over modules of torch.


def test_a_module_is_planned_as_accelerate_plans_it():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("accelerate")
    from accelerate.utils import compute_module_sizes

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)
            self.register_buffer("scale", torch.ones(64), persistent=False)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(1000, 64)
            self.blocks = torch.nn.ModuleList(Block() for _ in range(4))
            self.head = torch.nn.Linear(64, 1000, bias=False)
            self.head.weight = self.embed.weight

    net = Net()
    for dtype in (None, torch.float16):
        assert accelerate.compute_module_sizes(net, dtype=dtype) == dict(compute_module_sizes(net, dtype=dtype))
    for budget in (200_000, 400_000, 600_000, 10_000_000):
        for classes in (None, ["Block"]):
            budgets = {0: budget, "cpu": 300_000}
            expected = theirs.infer_auto_device_map(net, dict(budgets), no_split_module_classes=classes)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # Accelerate's order of what it cleans is that of a set.
                assert dict(accelerate.infer_auto_device_map(net, budgets, classes)) == dict(expected), (budget, classes)
