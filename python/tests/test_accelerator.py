"""`Accelerator` beyond what the goldens show: seeds, order, and what happens when something is wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from groups import in_processes

from tierflow import errors
from tierflow.accelerator import Accelerator
from tierflow.claims import budgets_of, claim, engine_options
from tierflow.data import DataLoader
from tierflow.distributed import SoloGroup
from tierflow.prepared import DataLoaderConfiguration


def epochs(group: Any, n: int, config: DataLoaderConfiguration | None = None, **options: Any) -> list[list[int]]:
    accelerator = Accelerator(cpu=True, dataloader_config=config, group=group)
    loader = accelerator.prepare(DataLoader(range(10), batch_size=2, shuffle=True, **options))
    return [[i for batch in loader for i in accelerator.gather_for_metrics(batch).tolist()] for _ in range(n)]


def test_shuffled_orders_are_those_of_rank_0() -> None:
    """Each rank draws from a seed of its own; together they still see every sample once, in a new order each epoch."""
    ranks = in_processes(3, lambda group: epochs(group, 2, seed=group.rank))
    assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0] == epochs(SoloGroup(), 2, seed=0)
    assert [sorted(epoch) for epoch in ranks[0]] == [list(range(10))] * 2
    assert ranks[0][0] != ranks[0][1]


def test_seedable_orders_follow_from_seed_and_epoch() -> None:
    config = lambda: DataLoaderConfiguration(use_seedable_sampler=True, data_seed=3)  # noqa: E731
    alone = epochs(SoloGroup(), 2, config())
    assert in_processes(2, lambda group: epochs(group, 2, config())) == [alone, alone]
    assert alone[0] != alone[1]


def test_a_seed_is_agreed_on_where_none_is_given() -> None:
    ranks = in_processes(2, lambda group: epochs(group, 1, DataLoaderConfiguration(use_seedable_sampler=True)))
    assert ranks[0] == ranks[1] and sorted(ranks[0][0]) == list(range(10))


def test_epochs_reach_data_sets_and_samplers() -> None:
    class Dataset(list):
        epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    dataset = Dataset(range(4))
    loader = Accelerator(cpu=True).prepare(DataLoader(dataset, batch_size=2))
    assert [list(map(list, loader)) for _ in range(3)] == [[[0, 1], [2, 3]]] * 3
    assert dataset.epochs == [0, 1, 2]


def test_the_innermost_loader_says_what_is_dropped() -> None:
    def nested(group: Any) -> list[Any]:
        accelerator = Accelerator(cpu=True, group=group)
        outer = accelerator.prepare(DataLoader(range(8), batch_size=2))
        inner = accelerator.prepare(DataLoader(range(3), batch_size=2))
        return [len(accelerator.gather_for_metrics(batch)) for _ in outer for batch in inner]

    assert in_processes(2, nested) == [[3, 3]] * 2


def test_a_loader_left_early_does_not_count_any_more() -> None:
    accelerator = Accelerator(cpu=True)
    for _ in accelerator.prepare(DataLoader(range(3), batch_size=2)):
        break
    assert accelerator._active == []


def test_text_is_gathered_in_the_order_of_the_data() -> None:
    texts = [f"line {i}" for i in range(7)]

    def gathered(group: Any) -> list[str]:
        accelerator = Accelerator(cpu=True, group=group)
        loader = accelerator.prepare(DataLoader(texts, batch_size=2))
        return [text for batch in loader for text in accelerator.gather_for_metrics(batch)]

    for n in (1, 2, 3):
        assert in_processes(n, gathered) == [texts] * n


def test_the_main_process_goes_first() -> None:
    order: list[int] = []

    def enter(group: Any) -> None:
        with Accelerator(cpu=True, group=group).main_process_first():
            if group.rank == 0:
                time.sleep(0.1)
            order.append(group.rank)

    in_processes(3, enter)
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


def test_one_process_prints(capsys: pytest.CaptureFixture[str]) -> None:
    in_processes(3, lambda group: Accelerator(cpu=True, group=group).print("rank", group.rank))
    assert capsys.readouterr().out == "rank 0\n"


def test_values_are_broadcast() -> None:
    ranks = in_processes(3, lambda group: Accelerator(group=group).broadcast({"from": group.rank}, from_process=2))
    assert ranks == [{"from": 2}] * 3


def test_a_rank_that_fails_ends_the_wait_of_the_others() -> None:
    def fail(group: Any) -> None:
        if group.rank == 1:
            raise KeyError("no such column")
        Accelerator(group=group).wait_for_everyone()

    with pytest.raises(errors.CollectiveError, match="rank 0 waits in wait_for_everyone for rank 1, which has failed .*no such column"):
        in_processes(2, fail)


def test_different_operations_end_in_an_error() -> None:
    def mixed(group: Any) -> Any:
        accelerator = Accelerator(group=group)
        return accelerator.wait_for_everyone() if group.rank else accelerator.gather(np.zeros(1))

    with pytest.raises(errors.CollectiveError, match="gather where rank|wait_for_everyone where rank"):
        in_processes(2, mixed)


def test_different_shapes_are_shown() -> None:
    with pytest.raises(errors.CollectiveError, match=r"rank 0 has int64\[1\], rank 1 has int64\[2\]; pad_across_processes"):
        in_processes(2, lambda group: Accelerator(group=group).gather(np.zeros(group.rank + 1, np.int64)))


def test_waits_have_a_deadline() -> None:
    def late(group: Any) -> None:
        accelerator = Accelerator(group=group, timeout=0.2)
        if group.rank == 0:
            accelerator.wait_for_everyone()
        time.sleep(0.6)

    with pytest.raises(errors.DeadlineError, match=r"rank 0 waited 0.2 s in wait_for_everyone for rank 1"):
        in_processes(2, late)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "not at least 1"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "excludes"),
        ({"sampler": [0], "shuffle": True}, "excludes"),
    ],
)
def test_data_loaders_refuse_options_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UsageError, match=message):
        DataLoader(range(3), **options)


def test_streams_have_no_order() -> None:
    with pytest.raises(errors.UsageError, match="a stream has no indices"):
        DataLoader(iter(range(3)), shuffle=True)


def test_a_short_batch_in_the_middle_is_refused() -> None:
    class Sampler:
        batch_size = 2

        def __iter__(self):
            return iter([[0, 1], [2], [3, 4], [5, 6]])

    with pytest.raises(errors.UsageError, match="batch 1 has not 2 samples"):
        in_processes(2, lambda g: list(Accelerator(group=g).prepare(DataLoader(range(9), batch_sampler=Sampler()))))


def test_options_are_checked() -> None:
    with pytest.raises(errors.UsageError, match="'fp4' is none of no, fp16, bf16"):
        Accelerator(mixed_precision="fp4")
    with pytest.raises(errors.UsageError, match="reduction 'min' is none of"):
        Accelerator().reduce(np.zeros(1), "min")
    with pytest.raises(errors.UsageError, match="expected an array"):
        Accelerator().gather(["text"])
    with pytest.raises(errors.UsageError, match="different lengths"):
        in_processes(2, lambda g: Accelerator(group=g).split_between_processes({"a": [1], "b": []}).__enter__())


def test_engines_pass_through_prepare() -> None:
    engine = object()
    prepared, loader = Accelerator(cpu=True).prepare(engine, DataLoader([1, 2]))
    assert prepared is engine and len(loader) == 2
    assert Accelerator(cpu=True).device == "cpu"


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(errors.WorkerDiedError("rank 1 died", rank=1, exit_code=-9, log="last")))
    assert (str(error), error.rank, error.exit_code, error.log) == ("rank 1 died", 1, -9, "last")
    assert isinstance(error, errors.TierflowError)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_two_processes_on_one_budget(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that would plan with all memory of a GPU is told which process has it; parts of it may be shared."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    other = "import sys; from tierflow.claims import claim; claim('gpu:7', shared=sys.argv[1] == 'part'); print('mine')"

    def second(how: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run([sys.executable, "-c", other, how], capture_output=True, text=True, env=environment, timeout=60)

    assert second("all").stdout == "mine\n"
    monkeypatch.setattr("tierflow.claims._claims", {})
    claim("gpu:7", shared=True)
    assert second("part").stdout == "mine\n"
    refused = second("all")
    assert "BudgetInUseError" in refused.stderr and f"process {os.getpid()}" in refused.stderr and "gpu:7" in refused.stderr


def test_budgets_have_one_spelling() -> None:
    spellings = ("gpu:0=4GiB,cpu=8GiB", {0: "4GiB", "cpu": "8GiB"}, {"cuda:0": "4GiB", "cpu": "8GiB"})
    assert [budgets_of(spelling) for spelling in spellings] == [{"gpu:0": "4GiB", "cpu": "8GiB"}] * 3
    assert budgets_of(None) == {}


def test_processes_of_one_machine_share_its_memory_and_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines of one machine would both plan with all of it; what the script says goes first."""
    monkeypatch.setattr("tierflow.claims.known_devices", lambda: [{"device": "cpu", "capacity": 1001}])

    def options(group: Any, **given: Any) -> dict[str, Any]:
        return engine_options(Accelerator(mixed_precision="fp16", cpu=True, group=group), given)

    alone = {"device": "cpu", "kv_dtype": "f16"}
    assert options(SoloGroup()) == alone
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    assert in_processes(2, options) == [{**alone, "threads": 4, "max_memory": {"cpu": 500}}] * 2
    monkeypatch.setenv("TIERFLOW_THREADS", "7")
    assert options(SoloGroup()) == {**alone, "threads": 7}
    given = {"device": "cpu", "kv_dtype": "f32", "threads": 1, "max_memory": {"cpu": "1GiB"}}
    assert in_processes(2, lambda group: options(group, **given)) == [given] * 2


def test_the_launcher_names_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERFLOW_ADAPTER", "3")
    assert Accelerator(group=SoloGroup()).device == "gpu:3"
    assert Accelerator(cpu=True, group=SoloGroup()).device == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert Accelerator(group=SoloGroup()).device == "cpu"
