"""`tierflow.Engine`: its answers are those of the program, and it can be interrupted, pickled and shared by threads."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tierflow
from tierflow import errors

PROMPT = "The capital of France is"
QUESTION = [{"role": "user", "content": "Name three colours."}]


def test_an_answer_is_the_programs(engine, program, smollm2):
    run = program("run", smollm2, "--raw", "--temp", 0, "-n", 24, "-c", 512, "--device", "cpu", "-p", PROMPT)
    assert len(run["text"]) > 20
    assert engine.generate(PROMPT, max_tokens=24, temperature=0) == run["text"]
    assert "".join(engine.stream(PROMPT, max_tokens=24, temperature=0)) == run["text"]


def test_a_chat_is_the_programs(engine, program, smollm2):
    run = program("run", smollm2, "--temp", 0, "-n", 24, "-c", 512, "--device", "cpu", "-p", QUESTION[0]["content"])
    message = engine.chat(QUESTION, max_tokens=24, temperature=0)
    assert (message["role"], message["content"]) == ("assistant", run["text"])
    assert "".join(engine.stream(QUESTION, max_tokens=24, temperature=0)) == run["text"]


def test_sampling_is_the_programs(engine, program, smollm2):
    how = {"temperature": 1.0, "seed": 7, "top_k": 20, "top_p": 0.9, "min_p": 0.0}
    options = ["--temp", 1.0, "-s", 7, "--top-k", 20, "--top-p", 0.9, "--min-p", 0.0]
    run = program("run", smollm2, "--raw", *options, "-n", 16, "-c", 512, "--device", "cpu", "-p", PROMPT)
    assert engine.generate(PROMPT, max_tokens=16, **how) == run["text"]


def test_tokens_are_the_programs(engine, program, smollm2):
    text = "Grüße, <|im_end|> 世界!"
    tokens = engine.tokenize(text)
    assert tokens == program("tokenize", smollm2, text)["ids"]
    assert engine.detokenize(engine.tokenize(text, parse_special=False)) == text
    assert engine.generate(tokens, max_tokens=4, temperature=0) == engine.generate(text, max_tokens=4, temperature=0)


def test_logits_are_the_programs(engine, program, smollm2):
    tokens = engine.tokenize(PROMPT)
    given = program("logits", smollm2, "--tokens", ",".join(map(str, tokens)), "--all", "-c", 512, "--device", "cpu")
    expected = np.array([position["logits"] for position in given["positions"]], dtype=np.float32)
    logits = engine.logits(PROMPT)
    assert logits.shape == (len(tokens), engine.vocab_size) and logits.dtype == np.float32
    assert np.array_equal(logits, expected)
    assert np.array_equal(engine.logits(tokens, last=True).argmax(), logits[-1].argmax())
    # The token that is drawn is the likeliest.
    assert engine.generate(PROMPT, max_tokens=1, temperature=0) == engine.detokenize([int(logits[-1].argmax())])


def test_scores_are_those_of_the_logits(engine):
    tokens = engine.tokenize(PROMPT)
    logits = engine.logits(tokens).astype(np.float64)
    likely = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) - logits.max(axis=1, keepdims=True)
    expected = [likely[index, token] for index, token in enumerate(tokens[1:])]
    assert np.allclose(engine.score(PROMPT), expected, atol=1e-5)
    assert engine.score(tokens[:1]).shape == (0,)


def write_adapter(folder, model, factor):
    """A LoRA adapter of rank 2 for the feed-forward part of the first layer, as PEFT writes it."""
    shape = json.loads((model / "config.json").read_text())
    sides = {"lora_A": (2, shape["hidden_size"], 0.3), "lora_B": (shape["intermediate_size"], 2, factor)}
    header, data = {}, b""
    for name, (rows, columns, scale) in sides.items():
        values = (np.sin(np.arange(rows * columns) * 0.7) * scale).astype("<f4").tobytes()
        offsets = [len(data), len(data) + len(values)]
        tensor = {"dtype": "F32", "shape": [rows, columns], "data_offsets": offsets}
        header[f"base_model.model.model.layers.0.mlp.up_proj.{name}.weight"] = tensor
        data += values
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def test_adapters_are_the_programs(program, models, tmp_path):
    tiny = models / "tiny"
    one, other = write_adapter(tmp_path / "one", tiny, 0.5), write_adapter(tmp_path / "other", tiny, -0.8)
    how = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}

    def run(*loras):
        options = ["--raw", "--temp", 0, "-n", 12, "--ignore-eos", "-c", 128, "--device", "cpu", "-p", PROMPT]
        return program("run", tiny, *options, *(option for lora in loras for option in ("--lora", lora)))["text"]

    expected = [run(), run(one), run(one, f"{other}=0.5"), run(f"{other}=2")]
    assert len(set(expected)) == 4
    with tierflow.Engine(tiny, device="cpu", ctx_size=128, lora=one) as engine:
        assert engine.generate(PROMPT, **how) == expected[1]
        assert pickle.loads(pickle.dumps(engine)).generate(PROMPT, **how) == expected[1]
    with tierflow.Engine(tiny, device="cpu", ctx_size=128, lora={one: 1, other: 0.5}) as engine:
        assert engine.generate(PROMPT, **how) == expected[2]
        assert engine.generate(PROMPT, lora=[{"id": 1, "scale": 2}], **how) == expected[3]
        assert engine.generate(PROMPT, lora=[], **how) == expected[0]
        assert engine.generate(PROMPT, **how) == expected[2]
        with pytest.raises(errors.ArgumentError, match="lora"):
            engine.generate(PROMPT, lora=[{"id": 2, "scale": 1}], **how)
    for wrong in [3, [3], [(one, "much")], {one: None}]:
        with pytest.raises(errors.ArgumentError, match="lora"):
            tierflow.Engine(tiny, device="cpu", lora=wrong)
    with pytest.raises(errors.TierflowError, match="adapter_config.json"):
        tierflow.Engine(tiny, device="cpu", lora=tiny)


def test_embeddings_are_the_programs(program, models):
    tiny = models / "tiny.gguf"
    given = program("embed", tiny, "--device", "cpu", "-c", 128, "--pooling", "mean", "one text", "another")
    with tierflow.Engine(tiny, device="cpu", ctx_size=128, embedding=True) as engine:
        vectors = engine.embed(["one text", "another"], pooling="mean")
        assert np.array_equal(vectors, np.array([entry["embedding"] for entry in given["embeddings"]], dtype=np.float32))
        assert np.array_equal(engine.embed("another", pooling="mean"), vectors[1])
        assert math.isclose(float(np.linalg.norm(vectors[0])), 1.0, rel_tol=1e-5)
        with pytest.raises(errors.ArgumentError, match="embeddings"):
            engine.generate("x")
        with pytest.raises(errors.ArgumentError, match="pooling"):
            engine.embed("x", pooling="max")


def test_a_model_streams_through_a_small_gpu(engine, smollm2):
    """Weights on the adapter, in host memory and on disk: a prefix of what the host answers, which rounds otherwise than an adapter."""
    with tierflow.Engine(smollm2, device="gpu:0", max_memory={0: "40MiB", "cpu": "16MiB"}, ctx_size=64) as small:
        devices = {entry["device"] for entry in small.plan.to_dict()["plan"]["devices"]}
        assert {"gpu:0", "cpu", "disk"} <= devices
        assert small.generate(PROMPT, max_tokens=6, temperature=0) == engine.generate(PROMPT, max_tokens=6, temperature=0)


def test_a_plan_is_made_without_loading(models):
    plan = tierflow.plan(models / "llama-8b", device="cpu", max_memory={"cpu": "4GiB"}, measure=False, ctx_size=512)
    assert "32 layers" in str(plan)
    assert plan.device_map and set(plan.device_map.values()) <= {"cpu", "disk"}
    with pytest.raises(errors.DoesNotFitError) as refused:
        tierflow.plan(models / "llama-8b", device="cpu", max_memory={"cpu": "1MiB"}, measure=False, ctx_size=512)
    assert refused.value.needed > refused.value.available == 1 << 20 and isinstance(refused.value, MemoryError)


def test_devices_are_listed(engine):
    names = [device["device"] for device in tierflow.devices()]
    assert "cpu" in names and "disk" in names
    assert "cpu" in [device["device"] for device in engine.devices()]


def test_a_device_map_places_each_module(models):
    rule = tierflow.plan(models / "tiny.gguf", device="cpu", device_map="sequential", measure=False, ctx_size=64)
    given = dict.fromkeys(rule.device_map, "cpu")
    with tierflow.Engine(models / "tiny.gguf", device="cpu", device_map=given, ctx_size=64) as engine:
        assert set(engine.hf_device_map.values()) == {"cpu"}


def test_a_map_of_tensors_that_are_not_there_names_what_lacks_a_device(models):
    with pytest.raises(errors.ArgumentError, match="model.embed_tokens") as refused:
        tierflow.Engine(models / "tiny.gguf", device="cpu", device_map={"transformer.h.0": "cpu"})
    assert refused.value.argument == "device_map"


# Forms of answers.


def test_answers_keep_to_a_schema(engine):
    class Colour:
        @staticmethod
        def model_json_schema():
            return {"type": "object", "properties": {"name": {"enum": ["red", "blue"]}}, "required": ["name"], "additionalProperties": False}

    message = engine.chat(QUESTION, response_format=Colour, max_tokens=40, temperature=0)
    assert json.loads(message["content"])["name"] in ("red", "blue")


def test_tools_are_called(engine):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "weather", "description": "The weather of a city", "parameters": parameters}}
    choice = {"type": "function", "function": {"name": "weather"}}
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = engine.chat(question, tools=[tool], tool_choice=choice, max_tokens=80, temperature=0)
    call = message["tool_calls"][0]["function"]
    assert call["name"] == "weather" and "city" in json.loads(call["arguments"])


def test_openais_objects(engine):
    answer = engine.create_completion(PROMPT, max_tokens=3, temperature=0, logprobs=2)
    assert answer["object"] == "text_completion" and answer["usage"]["completion_tokens"] == 3
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 3
    chunks = list(engine.create_chat_completion(QUESTION, max_tokens=3, temperature=0, stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    stream = engine.stream(PROMPT, max_tokens=3, temperature=0)
    list(stream)
    assert stream.finish_reason == "length" and stream.usage["completion_tokens"] == 3


# Waiting, and ending.


def test_async_streams_run_side_by_side(engine):
    expected = engine.generate(PROMPT, max_tokens=8, temperature=0)

    async def ask():
        return "".join([piece async for piece in engine.stream(PROMPT, max_tokens=8, temperature=0)])

    async def all_of_them():
        # More than there are sequences: the others wait.
        return await asyncio.gather(*(ask() for _ in range(6)), engine.agenerate(PROMPT, max_tokens=8, temperature=0))

    assert asyncio.run(asyncio.wait_for(all_of_them(), 120)) == [expected] * 7


def test_a_cancelled_task_ends_its_answer(engine):
    async def cancelled():
        stream = engine.stream(PROMPT, max_tokens=400, ignore_eos=True)
        await stream.__anext__()
        task = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [piece async for piece in stream] == []

    asyncio.run(asyncio.wait_for(cancelled(), 60))
    assert engine.generate(PROMPT, max_tokens=2, temperature=0)


def _interrupted(work) -> float:
    """Sends Ctrl-C while `work` runs; how long it went on."""
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    timer.join()
    return time.monotonic() - sent[0]


def test_ctrl_c_ends_a_generation_and_the_session_goes_on(engine):
    """As in a notebook: an answer, one that is interrupted, and the next."""
    before = engine.generate(PROMPT, max_tokens=8, temperature=0)
    assert _interrupted(lambda: engine.generate(PROMPT, max_tokens=480, ignore_eos=True)) < 5
    stream = engine.stream(PROMPT, max_tokens=480, ignore_eos=True)
    assert _interrupted(lambda: [time.sleep(0) for _ in stream]) < 5
    assert list(stream) == []
    assert _interrupted(lambda: [engine.logits(PROMPT * 10) for _ in range(200)]) < 10
    assert engine.generate(PROMPT, max_tokens=8, temperature=0) == before


def test_a_closed_stream_frees_its_sequence(tiny):
    stream = tiny.stream("x", max_tokens=200, ignore_eos=True)
    next(stream)
    with pytest.raises(errors.BusyError, match="n_seqs"):
        tiny.generate("y", max_tokens=1)
    with pytest.raises(errors.BusyError, match="n_seqs"):
        tiny.logits("y")
    stream.close()
    assert list(stream) == []
    tiny.generate("y", max_tokens=1)
    with tiny.stream("x", max_tokens=200, ignore_eos=True) as stream:
        next(stream)
    tiny.generate("y", max_tokens=1)


def test_python_runs_while_an_answer_is_made(engine):
    """The interpreter's lock is free: another thread counts, and two answers come at the same time."""
    ends, counted, texts = threading.Event(), [0], []

    def count():
        while not ends.is_set():
            counted[0] += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    askers = [threading.Thread(target=lambda: texts.append(engine.generate(PROMPT, max_tokens=24, temperature=0))) for _ in range(3)]
    [asker.start() for asker in askers]
    [asker.join(120) for asker in askers]
    ends.set()
    counter.join()
    assert len(texts) == 3 and len(set(texts)) == 1
    assert counted[0] > 20


def test_a_closed_engine_says_so(models):
    engine = tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=64)
    stream = engine.stream("x", max_tokens=60, ignore_eos=True)
    next(stream)
    engine.close()
    engine.close()
    assert engine.is_closed and "closed" in repr(engine)
    for use in (lambda: engine.generate("x"), lambda: engine.tokenize("x"), lambda: engine.logits("x"), lambda: list(stream), lambda: engine.plan):
        with pytest.raises(errors.ClosedError, match="closed"):
            use()


def test_closing_ends_what_other_threads_wait_for(models):
    engine = tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=256)
    failures = []

    def ask():
        try:
            engine.generate("x", max_tokens=1)
        except errors.ClosedError as error:
            failures.append(error)

    # Its only sequence is taken, so that the other thread waits.
    stream = engine.stream("x", max_tokens=200, ignore_eos=True)
    next(stream)
    asker = threading.Thread(target=ask)
    asker.start()
    asker.join(0.3)
    assert asker.is_alive()
    engine.close()
    asker.join(20)
    assert not asker.is_alive() and len(failures) == 1


FORKED = """
import os, sys, tierflow
engine = tierflow.Engine(sys.argv[1], device="cpu", ctx_size=64)
stream = engine.stream("x", max_tokens=8, ignore_eos=True)
next(stream)
child = os.fork()
if child == 0:
    refused = 0
    for use in (lambda: engine.generate("x"), lambda: next(stream), lambda: tierflow.Engine(sys.argv[1]), lambda: tierflow.devices()):
        try:
            use()
        except tierflow.errors.ForkError as error:
            refused += "spawn" in str(error)
    assert engine.is_closed
    del engine, stream
    sys.exit(refused)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 4, status
stream.close()
assert engine.generate("x", max_tokens=2, temperature=0)
print("both went on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_is_refused_and_does_not_hang(models):
    ran = subprocess.run([sys.executable, "-c", FORKED, models / "tiny.gguf"], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "both went on", ran.stderr


def test_an_engine_is_pickled_as_its_recipe(models):
    with tierflow.Engine(models / "tiny.gguf", device="cpu", max_memory={"cpu": "1GiB"}, ctx_size=96) as engine:
        text = engine.generate("x", max_tokens=4, temperature=0)
        pickled = pickle.dumps(engine)
    assert len(pickled) < 4096
    with pickle.loads(pickled) as again:
        assert again.ctx_size == 96
        assert again.generate("x", max_tokens=4, temperature=0) == text


# Bad input.


@pytest.mark.parametrize("prompt", [b"caf\xe9", "half \ud83d a character"])
def test_what_is_no_utf8_is_refused(tiny, prompt):
    for use in (tiny.generate, tiny.tokenize, lambda text: tiny.chat([{"role": "user", "content": text}]), lambda text: next(tiny.stream(text))):
        with pytest.raises(errors.EncodingError, match="UTF-8|character"):
            use(prompt)
    assert tiny.tokenize("café") == tiny.tokenize("café".encode())


def test_errors_name_what_is_wrong(tiny, tmp_path):
    with pytest.raises(errors.ContextFullError, match="ctx_size"):
        tiny.generate("x " * 600)
    with pytest.raises(errors.ContextFullError, match="ctx_size") as refused:
        tiny.logits([1] * 300)
    assert (refused.value.needed, refused.value.available) == (300, 256)
    with pytest.raises(errors.ArgumentError, match="temperture") as refused:
        tiny.generate("x", temperture=0.1)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tiny.detokenize([10**6])
    with pytest.raises(errors.ArgumentError, match="-1 is no token"):
        tiny.logits([-1])
    with pytest.raises(errors.ArgumentError, match="messages"):
        tiny.chat("not a list")
    with pytest.raises(errors.ArgumentError, match="embedding=True"):
        tiny.embed("x")
    with pytest.raises(errors.FileError) as refused:
        tierflow.Engine(tmp_path / "missing.gguf")
    assert isinstance(refused.value, OSError) and "missing.gguf" in refused.value.path
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(errors.ModelError, match="broken.gguf"):
        tierflow.Engine(broken)
    with pytest.raises(TypeError, match="unexpected argument 'contxt'"):
        tierflow.Engine(broken, contxt=5)
    for name, value in (("device", "tpu"), ("ctx_size", -1), ("n_seqs", 0), ("kv_dtype", "q4"), ("max_memory", {"cpu": 1.5}), ("device_map", 7)):
        with pytest.raises(errors.ArgumentError, match=name):
            tierflow.Engine(broken, **{name: value})


def test_exceptions_can_be_pickled():
    error = errors.DoesNotFitError("too large", device="cpu", needed=2, available=1)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.needed) == (errors.DoesNotFitError, "too large", 2)
    assert str(errors.FileError("gone", path="x")) == "gone"


# What is told beside answers.


def test_loading_is_told_to_a_hook(models):
    told = []
    tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=64, progress=lambda done, total: told.append((done, total))).close()
    assert told and told[-1][0] == told[-1][1] > 0 and told == sorted(told)
    tqdm = pytest.importorskip("tqdm").tqdm
    with tqdm(disable=False, file=open(os.devnull, "w")) as bar:
        tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=64, progress=bar).close()
        assert bar.n == bar.total == told[-1][1]


def test_a_hook_that_fails_ends_the_loading(models):
    def fail(done, total):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=64, progress=fail)


def test_log_lines_go_through_logging(models, caplog):
    with caplog.at_level(logging.DEBUG, logger="tierflow"):
        tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=4096, measure=False).close()
    records = [record for record in caplog.records if record.name.startswith("tierflow.")]
    assert any(record.levelno == logging.WARNING and record.getMessage().startswith("ctx_size=4096: the model was trained") for record in records)
    assert any(record.levelno == logging.DEBUG for record in records)
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="tierflow"):
        tierflow.Engine(models / "tiny.gguf", device="cpu", ctx_size=4096, measure=False).close()
    assert not caplog.records
