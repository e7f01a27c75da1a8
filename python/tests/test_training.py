"""The training loop in Python: the same as `tierflow train`, over one process or two, and refusing what cannot be trained."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from groups import in_processes

import tierflow
from tierflow import errors
from tierflow.optim import SGD, AdamW, LambdaLR, get_scheduler

CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture
def opened(models: Path) -> Any:
    """Opens the tiny model for training, again and again."""
    made = []

    def open_model(file: str = "tiny", lora: dict[str, Any] | None = None, **options: Any) -> tierflow.LoraModel:
        options = {"device": "cpu", "seq_len": 64, **options}
        made.append(tierflow.LoraModel(models / file, tierflow.LoraConfig(**{**CONFIG, **(lora or {})}), **options))
        return made[-1]

    yield open_model
    for model in made:
        model.close()


def tokens(number: int, length: int) -> list[int]:
    return [(37 * i + 11 * number * number + i * number) % 256 for i in range(length)]


def rows(numbers: range, length: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of token ids and labels, the first third of which is not trained."""
    ids = [np.array(tokens(number, length)) for number in numbers]
    return [(row, np.where(np.arange(length) < length // 3, -100, row)) for row in ids]


def trained(model: Any, data: Any, accelerator: Any = None, n_epochs: int = 2, optimizer: Any = None, clip: float | None = None) -> list[float]:
    """The loop as Accelerate's page has it; its losses."""
    accelerator = accelerator or tierflow.Accelerator()
    model, optim, data = accelerator.prepare(model, optimizer or AdamW(model.parameters(), lr=1e-2), data)
    losses = []
    for _ in range(n_epochs):
        for source, targets in data:
            with accelerator.accumulate(model):
                loss = model(source, targets).loss
                accelerator.backward(loss)
                if clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optim.step()
                optim.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("dropout", "saved"), [(0.0, []), (0.1, []), (0.1, ["norm"])])
def test_the_loop_is_tierflow_train(opened: Any, models: Path, tmp_path: Path, dropout: float, saved: list[str]) -> None:
    """The same losses, lengths of gradients and adapter, to the last bit."""
    program = os.environ.get("TIERFLOW_PROGRAM")
    if not program:
        pytest.skip("TIERFLOW_PROGRAM is not set; `cargo xtask python` sets it")
    facts = [("a b", " c"), ("b c d", " e f"), ("d", " e f g h i"), ("k", " l")]
    path, out = tmp_path / "data.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in facts))
    lora = ["--lora-r", "4", "--lora-alpha", "8", "--target", "q_proj,v_proj,down_proj", "--dropout", str(dropout)]
    lora += [word for name in saved for word in ("--modules-to-save", name)]
    steps = ["--epochs", "3", "--lr", "1e-2", "--weight-decay", "0.01", "--warmup", "2", "--seq-len", "64", "--device", "cpu"]
    command = [program, "train", str(models / "tiny"), "--data", str(path), "--out", str(out), "--json", *lora, *steps]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    log = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(log) == 12

    model = opened(lora={"lora_dropout": dropout, "modules_to_save": saved})
    # The seed has put them in order; their lengths tell which is which.
    by_length = {len(record["input_ids"]): record for record in model.read_records(path)}
    assert len(by_length) == len(facts)
    accelerator = tierflow.Accelerator()
    optim = AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    schedule = get_scheduler("linear", optim, num_warmup_steps=2, num_training_steps=len(log))
    model, optim, schedule = accelerator.prepare(model, optim, schedule)
    for line in log:
        assert optim.lr == line["learning_rate"]
        loss = model(**by_length[line["n_tokens"]]).loss
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        assert (loss.item(), norm) == (line["loss"], line["grad_norm"])
        optim.step()
        schedule.step()
        optim.zero_grad()
    accelerator.unwrap_model(model).save_pretrained(tmp_path / "own")
    name = "adapter_model.safetensors"
    assert (tmp_path / "own" / name).read_bytes() == (out / name).read_bytes()


def test_the_model_learns_and_other_optimisers_do_otherwise(opened: Any) -> None:
    data = rows(range(3))
    adam = trained(opened(), data, n_epochs=4)
    model = opened()
    sgd = trained(model, data, n_epochs=4, optimizer=SGD(model.parameters(), lr=0.5, momentum=0.9))
    for losses in (adam, sgd):
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses
    assert adam[0] == sgd[0] and adam[1] != sgd[1]


def test_a_batch_is_its_sequences(opened: Any) -> None:
    """Side by side, ragged, padded, and as `DataLoader` and `pad_samples` put them together."""
    (short,), (long,) = rows(range(1)), rows(range(2, 3), 20)
    model = opened(batch_size=2).eval()
    n_short, n_long = 8, 14
    each = [model(*pair).loss.item() for pair in (short, long)]
    together = model([short[0], long[0]], [short[1], long[1]]).loss.item()
    assert together == pytest.approx((n_short * each[0] + n_long * each[1]) / (n_short + n_long), abs=1e-6)
    assert model([list(short[0])], [list(short[1])]).loss.item() == each[0]
    samples = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in (short, long)]
    (batch,) = tierflow.DataLoader(samples, batch_size=2, collate_fn=tierflow.pad_samples)
    assert batch["input_ids"].shape == (2, 20) and batch["attention_mask"].sum() == 32
    assert model(**batch).loss.item() == together
    (pair,) = tierflow.DataLoader([short, long], batch_size=2, collate_fn=tierflow.pad_samples)
    assert model(*pair).loss.item() == together
    assert model(*short, num_items_in_batch=2 * n_short).loss.item() == pytest.approx(each[0] / 2)


def test_a_loss_that_is_only_read_changes_nothing(opened: Any) -> None:
    lora = {"lora_dropout": 0.2}
    data = rows(range(2))
    quiet, curious = opened(lora=lora), opened(lora=lora)
    expected = trained(quiet, data)
    optim = AdamW(curious.parameters(), lr=1e-2)
    losses = []
    for source, targets in data * 2:
        loss = curious(source, targets).loss
        read = loss.item()
        before = curious.values()
        assert curious.gradients() is None and (curious.values() == before).all()
        loss.backward()
        assert loss.item() == read == float(loss.detach()) and f"{loss:.3f}" == f"{read:.3f}"
        optim.step()
        optim.zero_grad()
        losses.append(read)
    assert losses == expected and (quiet.values() == curious.values()).all()


def test_a_loss_is_of_the_adapter_that_it_was_computed_with(opened: Any) -> None:
    """However late it is read; and dropout is only there in training."""
    model = opened(lora={"lora_dropout": 0.5})
    (source, targets), *_ = rows(range(1))
    optim = AdamW(model.parameters(), lr=1e-1)
    model.set_values(model.values() + np.float32(0.1))
    now = model.eval()(source, targets).loss.item()
    late = model(source, targets).loss
    draws = {model.train()(source, targets).loss.item() for _ in range(2)}
    assert len(draws) == 2 and now not in draws
    loss = model(source, targets).loss
    loss.backward()
    optim.step()
    assert late.item() == now
    assert model.eval()(source, targets).loss.item() != now
    with pytest.raises(errors.UsageError, match="the adapter has changed since"):
        late.backward()


def test_accumulated_batches_are_one_batch(opened: Any) -> None:
    data = rows(range(4))
    whole, parts = opened(batch_size=4), opened()
    together = [(np.stack([source for source, _ in data]), np.stack([targets for _, targets in data]))]
    trained(whole, together, n_epochs=3, clip=0.5)
    accelerator = tierflow.Accelerator(gradient_accumulation_steps=4)
    trained(parts, tierflow.DataLoader(data, collate_fn=lambda samples: samples[0]), accelerator, n_epochs=3, clip=0.5)
    assert np.abs(whole.values() - parts.values()).max() < 1e-5
    assert whole._native.n_steps() == parts._native.n_steps() == 3
    assert np.abs(parts.values() - opened().values()).max() > 1e-3


def test_the_last_batch_of_a_loader_makes_a_step(opened: Any) -> None:
    model = opened()
    accelerator = tierflow.Accelerator(gradient_accumulation_steps=2)
    trained(model, tierflow.DataLoader(rows(range(3)), collate_fn=lambda samples: samples[0]), accelerator, n_epochs=2)
    assert model._native.n_steps() == 4


# Sums of f32 in another order, through some steps. AdamW divides gradients by their own size, those too that are rounding alone: so it is
# compared with an epsilon above them.
OPTIMISERS = {
    "sgd": (lambda model: SGD(model.parameters(), lr=0.5, momentum=0.9), 1e-6),
    "adamw": (lambda model: AdamW(model.parameters(), lr=1e-2, eps=1e-5), 1e-5),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_two_processes_train_the_adapter_of_one_with_twice_the_batch(opened: Any, name: str) -> None:
    optimiser, tolerance = OPTIMISERS[name]
    data = rows(range(8))
    whole = opened(batch_size=4)
    one = trained(whole, tierflow.DataLoader(data, batch_size=4), optimizer=optimiser(whole), clip=0.5)

    def share(group: Any) -> tuple[Any, list[float]]:
        # Other first values than those of rank 0 are replaced.
        model = opened(batch_size=2, seed=group.rank)
        accelerator = tierflow.Accelerator(group=group)
        losses = trained(model, tierflow.DataLoader(data, batch_size=2), accelerator, optimizer=optimiser(model), clip=0.5)
        return model.values(), losses

    (first, losses), (second, others) = in_processes(2, share, timeout=120)
    assert (first == second).all()
    assert np.abs(first - whole.values()).max() < tolerance
    assert np.abs(first - opened().values()).max() > 1e-2
    assert [(a + b) / 2 for a, b in zip(losses, others)] == pytest.approx(one, abs=1e-6)


def test_processes_wait_with_averages_until_gradients_are_complete(opened: Any) -> None:
    data = rows(range(8))
    optimiser, tolerance = OPTIMISERS["sgd"]

    def share(group: Any) -> Any:
        accelerator = tierflow.Accelerator(group=group, gradient_accumulation_steps=2)
        model = opened()
        loader = tierflow.DataLoader(data, collate_fn=lambda samples: samples[0])
        trained(model, loader, accelerator, n_epochs=1, optimizer=optimiser(model))
        return model.values(), model._native.n_steps()

    (first, n_steps), (second, _) = in_processes(2, share, timeout=120)
    whole = opened(batch_size=4)
    trained(whole, tierflow.DataLoader(data, batch_size=4), n_epochs=1, optimizer=optimiser(whole))
    assert n_steps == 2 and (first == second).all() and np.abs(first - whole.values()).max() < tolerance


def test_processes_with_different_adapters_are_told(opened: Any) -> None:
    def share(group: Any) -> None:
        tierflow.Accelerator(group=group).prepare(opened(lora={"r": 2 + group.rank}))

    with pytest.raises(errors.CollectiveError, match="different layers or ranks"):
        in_processes(2, share, timeout=120)


def test_learning_rates_can_be_set_in_any_way(opened: Any) -> None:
    (source, targets), *_ = rows(range(1))

    def after(rate: Any) -> Any:
        model = opened()
        optim = tierflow.Accelerator().prepare(model, AdamW(model.parameters(), lr=1.0))[1]
        rate(optim)
        model(source, targets).loss.backward()
        optim.step()
        return model.values()

    expected = after(lambda optim: setattr(optim, "lr", 1e-3))
    assert (after(lambda optim: optim.param_groups[0].update(lr=1e-3)) == expected).all()
    assert (after(lambda optim: LambdaLR(optim, lambda step: 1e-3)) == expected).all()
    assert not (after(lambda optim: None) == expected).all()
    with pytest.raises(errors.ArgumentError, match="lr: must be a number"):
        after(lambda optim: setattr(optim, "lr", math.nan))


def test_a_schedule_goes_on_with_the_steps_of_all_processes(opened: Any) -> None:
    def rates(group: Any) -> list[float]:
        accelerator = tierflow.Accelerator(group=group, gradient_accumulation_steps=2)
        model = opened()
        optim = AdamW(model.parameters(), lr=1.0)
        model, optim, schedule = accelerator.prepare(model, optim, get_scheduler("linear", optim, num_training_steps=8))
        found = []
        for _ in range(4):
            with accelerator.accumulate(model):
                schedule.step()
            found += schedule.get_last_lr()
        return found

    assert in_processes(2, rates, timeout=120) == [[1.0, 0.75, 0.75, 0.5]] * 2
    assert rates(None) == [1.0, 0.875, 0.875, 0.75]


def test_training_goes_on_from_a_saved_state(opened: Any, tmp_path: Path) -> None:
    """With the bits of a training that never stopped, and with the numbers of the optimiser and its schedule."""
    lora = {"lora_dropout": 0.1}
    data = rows(range(2))

    def prepared() -> Any:
        model = opened(lora=lora)
        optim = AdamW(model.parameters(), lr=1e-2)
        accelerator = tierflow.Accelerator()
        return accelerator, *accelerator.prepare(model, optim, get_scheduler("cosine", optim, 1, 8))

    def go(accelerator: Any, model: Any, optim: Any, schedule: Any, n_steps: int) -> list[float]:
        losses = []
        for source, targets in (data * 4)[:n_steps]:
            loss = model(source, targets).loss
            accelerator.backward(loss)
            optim.step()
            schedule.step()
            optim.zero_grad()
            losses.append(loss.item())
        return losses

    first = prepared()
    go(*first, 2)
    np.random.seed(5)
    for _ in range(2):
        assert first[0].save_state(tmp_path / "state") == str(tmp_path / "state")
    drawn = np.random.rand()
    expected = go(*first, 4)
    second = prepared()
    second[0].load_state(tmp_path / "state")
    assert np.random.rand() == drawn
    assert go(*second, 4) == expected
    assert (second[1].values() == first[1].values()).all() and second[2].lr == first[2].lr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    # PEFT's form, which models go on from, too.
    saved = json.loads((tmp_path / "state" / "adapter-0" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["r"], sorted(saved["target_modules"])) == ("LORA", 4, ["down_proj", "q_proj", "v_proj"])
    again = opened(adapter=tmp_path / "state" / "adapter-0")
    assert not (again.values() == opened().values()).all()
    alone = tierflow.Accelerator()
    alone.prepare(opened())
    with pytest.raises(errors.ModelError, match="is of 1 optimizers, and 0 were prepared"):
        alone.load_state(tmp_path / "state")
    (tmp_path / "state" / "accelerator.json").write_text("{}")
    with pytest.raises(errors.ModelError, match="accelerator.json: is no state of an accelerator"):
        second[0].load_state(tmp_path / "state")
    with pytest.raises(OSError, match="nowhere"):
        second[0].load_state(tmp_path / "nowhere")


def test_gguf_files_are_trained(opened: Any, tmp_path: Path) -> None:
    model = opened("tiny.gguf")
    losses = trained(model, rows(range(2)), n_epochs=3)
    assert losses[-1] < losses[1]
    model.save_pretrained(tmp_path)
    assert opened("tiny.gguf", adapter=tmp_path).values().tolist() == model.values().tolist()


def test_a_gpu_trains_the_same(opened: Any) -> None:
    try:
        model = opened(device="gpu", batch_size=2)
    except errors.NoGpuError:
        pytest.skip("there is no adapter")
    assert model.facts["device"] != "cpu"
    data = [rows(range(2))[0], rows(range(1, 2))[0]]
    expected = trained(opened(), data, n_epochs=3)
    assert trained(model, data, n_epochs=3) == pytest.approx(expected, abs=1e-3)
    assert expected[-1] < expected[1]
    on_gpu, on_host = (trained(opened(device=device, batch_size=2, lora={"lora_dropout": 0.3}), data, n_epochs=3) for device in ("gpu", "cpu"))
    assert on_gpu == pytest.approx(on_host, abs=1e-3) and on_host != pytest.approx(expected, abs=1e-3)


def test_parameters_are_pefts(opened: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = opened()
    named = dict(model.named_parameters())
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert len(named) == 24 and named[first].shape == (4, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == model.values().size == model.get_nb_trainable_parameters()[0]
    assert named[first].numpy().any() and named[first].grad is None
    (source, targets), *_ = rows(range(1))
    model(source, targets).loss.backward()
    second = named[first.replace("lora_A", "lora_B")]
    assert second.grad.shape == (64, 4) and second.grad.any() and not second.numpy().any()
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {model.values().size:,d} || all params: ")
    peft = tierflow.get_peft_model(model.facts["path"], tierflow.LoraConfig(**CONFIG), seq_len=64, device="cpu")
    assert (peft.values() == model.values()).all()
    peft.close()
    with pytest.raises(errors.ClosedError):
        peft(source, targets).loss.item()


def test_norms_are_trained_and_saved_whole(opened: Any, tmp_path: Path) -> None:
    without, model = opened(), opened(lora={"modules_to_save": ["input_layernorm", "model.norm"]})
    named = dict(model.named_parameters())
    norms = {name: parameter for name, parameter in named.items() if ".modules_to_save.default." in name}
    first = "base_model.model.model.layers.0.input_layernorm.modules_to_save.default.weight"
    assert len(norms) == len(named) - 24 and {first, "base_model.model.model.norm.modules_to_save.default.weight"} <= set(norms)
    assert all(parameter.shape == (64,) for parameter in norms.values())
    assert sum(parameter.numel() for parameter in named.values()) == model.values().size == without.values().size + 64 * len(norms)
    before = {name: parameter.numpy() for name, parameter in norms.items()}
    expected = trained(model, rows(range(2)))
    after = {name: parameter.numpy() for name, parameter in norms.items()}
    assert all((after[name] != before[name]).any() for name in norms)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["input_layernorm", "model.norm"]
    again = opened(lora={"modules_to_save": ["input_layernorm", "model.norm"]}, adapter=tmp_path)
    assert (again.values() == model.values()).all() and expected[0] != expected[-1]


GOOD = tokens(1, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([*GOOD[:3], 320], GOOD[:4]), "input_ids: token 320 of sequence 0 is outside the vocabulary of 320 tokens"),
        (([-1, 2], [-1, 2]), "input_ids: token -1 of sequence 0"),
        ((GOOD, [-100] * 7 + [5000]), "labels: token 5000 of sequence 0"),
        ((GOOD, [-1] * 8), "labels: token -1 of sequence 0 .* a label that is not trained is -100"),
        ((GOOD, GOOD[:7]), "labels: sequence 0 has 7, and 8 tokens"),
        (([GOOD, GOOD], [GOOD]), "labels: are of 1 sequences, input_ids of 2"),
        ((GOOD, [-100] * 8), "labels: all are -100"),
        ((GOOD, [5] + [-100] * 7), "labels: all are -100, or of first tokens"),
        (("text", GOOD), "input_ids: must be token ids"),
        (([0.5, 1.5], [1, 2]), "input_ids: must be whole numbers"),
        (([], []), "input_ids: must be token ids"),
        ((GOOD, GOOD, [0, *[1] * 7]), "attention_mask: of sequence 0 must be ones and then zeros"),
        ((GOOD, GOOD, [1] * 7 + [0]), "labels: sequence 0 trains tokens that its attention_mask hides"),
        ((GOOD, GOOD, None, 0), "num_items_in_batch: must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_named(opened: Any, arguments: Any, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        opened()(*arguments)


def test_sequences_that_are_too_long_are_named(opened: Any) -> None:
    with pytest.raises(errors.ContextFullError, match="sequence 0 has 65 tokens; the model was opened for 64") as caught:
        opened()(tokens(0, 65), tokens(0, 65))
    assert (caught.value.needed, caught.value.available) == (65, 64)


def test_orders_of_calls_that_cannot_work_are_refused(opened: Any) -> None:
    model, other = opened(), opened()
    accelerator = tierflow.Accelerator()
    with pytest.raises(errors.UsageError, match="the optimiser is of another model"):
        accelerator.prepare(model, AdamW(other.parameters()))
    loss = model(GOOD, GOOD).loss
    accelerator.backward(loss)
    with pytest.raises(errors.UsageError, match="backward was called on this loss before"):
        accelerator.backward(loss)
    with pytest.raises(errors.UsageError, match="must be the loss of a tierflow.LoraModel, not float"):
        accelerator.backward(1.5)
    with pytest.raises(errors.UsageError, match="are of 2 models"):
        AdamW([*model.parameters(), *other.parameters()])
    with pytest.raises(errors.UsageError, match="are 1 of the model's 24"):
        AdamW(model.parameters()[:1])
    with pytest.raises(errors.UsageError, match="list is no parameter"):
        SGD([[1.0]])
    for options, argument in ({"lr": -1}, "lr"), ({"betas": (0.9, 1.0)}, "betas"), ({"weight_decay": math.inf}, "weight_decay"):
        with pytest.raises(errors.ArgumentError, match=f"{argument}: must be"):
            AdamW(model.parameters(), **options)
    with pytest.raises(errors.ArgumentError, match="norm_type"):
        accelerator.clip_grad_norm_(model.parameters(), 1.0, norm_type=1)
    with pytest.raises(errors.ArgumentError, match="gradient_accumulation_steps"):
        tierflow.Accelerator(gradient_accumulation_steps=0)

    def unprepared(group: Any) -> None:
        tierflow.Accelerator(group=group).backward(opened()(GOOD, GOOD).loss)

    with pytest.raises(errors.UsageError, match="was not prepared"):
        in_processes(2, unprepared, timeout=120)


def test_a_loss_that_is_no_number_adds_nothing(opened: Any) -> None:
    model = opened()
    optim = AdamW(model.parameters())
    model(GOOD, GOOD).loss.backward()
    added = model.gradients()
    huge = np.full_like(model.values(), np.finfo(np.float32).max)
    model.set_values(huge)
    loss = model(GOOD, GOOD).loss
    assert not math.isfinite(loss.item())
    with pytest.raises(errors.NotFiniteError, match="the loss is .*lower the learning rate"):
        tierflow.Accelerator().backward(loss)
    assert (model.gradients() == added).all()
    model.set_gradients(np.full_like(added, np.nan))
    with pytest.raises(errors.NotFiniteError, match="the gradients are not finite"):
        optim.step()
    assert (model.values() == huge).all()


@pytest.mark.parametrize(
    ("lora", "options", "message"),
    [
        ({"target_modules": ["w_proj"]}, {}, "`w_proj` is no linear layer"),
        ({"target_modules": "q_proj"}, {}, "target_modules: 'q_proj' is no list of names"),
        ({"modules_to_save": ["q_proj"]}, {}, "`q_proj` is no norm of this model"),
        ({"modules_to_save": "norm"}, {}, "modules_to_save: 'norm' is no list of names"),
        ({"r": 0}, {}, "r: must be"),
        ({"lora_dropout": 1.0}, {}, "dropout"),
        ({"lora_alpha": 0}, {}, "alpha"),
        ({"bias": "all"}, {}, "bias"),
        ({}, {"seq_len": 1}, "seq_len: must be"),
        ({}, {"batch_size": True}, "batch_size: must be"),
        ({}, {"seq_len": 10_000}, "the model was made for 512 positions"),
        ({}, {"io": "tape"}, "io: `tape`"),
    ],
)
def test_options_that_are_not_possible_are_named(opened: Any, lora: Any, options: Any, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        opened(lora=lora, **options)


def test_frozen_matrices_may_be_held_in_16_bits(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, mixed = opened(), opened(mixed_precision="bf16")
    expected, loss = (model(GOOD, GOOD).loss.item() for model in (plain, mixed))
    assert loss != expected and loss == pytest.approx(expected, rel=1e-2)
    # As the launcher has it.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert opened()(GOOD, GOOD).loss.item() == loss
    assert opened(mixed_precision="no")(GOOD, GOOD).loss.item() == expected
    with pytest.raises(errors.UsageError, match="'fp8' is none of no, fp16, bf16"):
        opened(mixed_precision="fp8")


def test_autocast_changes_nothing(opened: Any) -> None:
    model = opened()
    expected = model(GOOD, GOOD).loss.item()
    with tierflow.Accelerator(mixed_precision="bf16").autocast():
        assert model(GOOD, GOOD).loss.item() == expected
