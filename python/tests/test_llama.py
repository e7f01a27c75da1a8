"""Code that was written for llama-cpp-python, with its import changed."""

from __future__ import annotations

import pickle

import pytest

import tierflow
from tierflow import errors

# As its documentation has it.
WRITTEN_FOR_LLAMA_CPP = '''
from llama_cpp import Llama

llm = Llama(model_path=MODEL, n_ctx=256, n_gpu_layers=0, seed=1337, verbose=False)
output = llm(
    "Q: Name the planets in the solar system? A: ",
    max_tokens=32,
    stop=["Q:", "\\n"],
    echo=True,
    temperature=0.0,
)
text = output["choices"][0]["text"]
pieces = "".join(
    chunk["choices"][0]["text"] for chunk in llm(
        "Q: Name the planets in the solar system? A: ", max_tokens=32, stop=["Q:", "\\n"], temperature=0.0, stream=True
    )
)
chat = llm.create_chat_completion(
    messages=[
        {"role": "system", "content": "You are an assistant who perfectly describes images."},
        {"role": "user", "content": "Describe this image in detail please."},
    ],
    max_tokens=16,
    temperature=0.0,
)
answer = chat["choices"][0]["message"]["content"]
streamed = ""
for chunk in llm.create_chat_completion(messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0.0, stream=True):
    delta = chunk["choices"][0]["delta"]
    streamed += delta.get("content", "")
tokens = llm.tokenize(b"Hello, world")
back = llm.detokenize(tokens)
n_ctx, n_vocab = llm.n_ctx(), llm.n_vocab()
'''


def test_only_the_import_changes(smollm2, program):
    code = WRITTEN_FOR_LLAMA_CPP.replace("from llama_cpp import Llama", "from tierflow import Llama")
    found: dict = {"MODEL": str(smollm2)}
    exec(code, found)
    prompt = "Q: Name the planets in the solar system? A: "
    expected = program("run", smollm2, "--raw", "--temp", 0, "-n", 32, "-c", 256, "--stop", "Q:", "--stop", "\n", "--device", "cpu", "-p", prompt)
    assert found["text"] == prompt + expected["text"]
    assert found["pieces"] == expected["text"]
    assert found["output"]["object"] == "text_completion" and found["output"]["usage"]["prompt_tokens"] > 5
    assert found["answer"] and found["streamed"]
    assert found["back"] == b"Hello, world" and len(found["tokens"]) >= 3
    assert (found["n_ctx"], found["n_vocab"]) == (256, 49152)
    found["llm"].close()


def test_what_does_not_exist_here_is_refused_by_name(models):
    with pytest.raises(errors.ArgumentError, match="chat_format"):
        tierflow.Llama(model_path=str(models / "tiny.gguf"), chat_format="chatml")
    with pytest.raises(TypeError, match="lora_path"):
        tierflow.Llama(model_path=str(models / "tiny.gguf"), lora_path="x")
    with tierflow.Llama(model_path=str(models / "tiny.gguf"), n_ctx=64, logits_all=True) as llm:
        with pytest.raises(errors.ArgumentError, match="mirostat_mode"):
            llm("x", mirostat_mode=2)
        with pytest.raises(errors.ArgumentError, match="grammar"):
            llm("x", grammar="root ::= x")
        assert llm("x", temperature=0.0, ignore_eos=True)["usage"]["completion_tokens"] == 16
        assert llm("x", typical_p=1.0, mirostat_mode=0, max_tokens=2)["choices"][0]["finish_reason"] in ("length", "stop")


def test_a_seed_gives_the_same_again(models):
    with tierflow.Llama(model_path=str(models / "tiny.gguf"), n_ctx=64, seed=3) as llm:
        texts = {llm("x", temperature=1.0)["choices"][0]["text"] for _ in range(2)}
        with pickle.loads(pickle.dumps(llm)) as again:
            texts.add(again("x", temperature=1.0)["choices"][0]["text"])
    assert len(texts) == 1


def test_embeddings(models):
    with tierflow.Llama(model_path=str(models / "tiny.gguf"), n_ctx=64, embedding=True) as llm:
        answer = llm.create_embedding(["one", "two"])
        assert [entry["index"] for entry in answer["data"]] == [0, 1] and answer["usage"]["prompt_tokens"] > 1
        assert len(llm.embed("one")) == llm.n_embd()
