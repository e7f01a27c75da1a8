"""The components in real pipelines of Haystack, with a tiny model and with SmolLM2."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("haystack")

from haystack import Document, Pipeline  # noqa: E402
from haystack.components.builders import ChatPromptBuilder  # noqa: E402
from haystack.dataclasses import ChatMessage, StreamingChunk, ToolCall  # noqa: E402
from haystack.tools import Tool  # noqa: E402
from haystack.utils import ComponentDevice, Device, DeviceMap  # noqa: E402

import tierflow  # noqa: E402
from haystack_integrations.components.embedders.tierflow import TierflowDocumentEmbedder, TierflowTextEmbedder  # noqa: E402
from haystack_integrations.components.generators.tierflow import TierflowChatGenerator  # noqa: E402

CPU = ComponentDevice.from_str("cpu")
GREEDY = {"max_tokens": 12, "temperature": 0}
SMALL = {"ctx_size": 512, "n_seqs": 2}


def _named(variable: str) -> str:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set; `cargo xtask python` sets it")
    return os.environ[variable]


@pytest.fixture(scope="module")
def smollm2() -> str:
    return _named("TIERFLOW_SMOLLM2")


@pytest.fixture(scope="module")
def tiny() -> str:
    return str(Path(_named("TIERFLOW_TEST_MODELS")) / "tiny.gguf")


@pytest.fixture(scope="module")
def generator(smollm2):
    made = TierflowChatGenerator(smollm2, device=CPU, generation_kwargs=GREEDY, engine_kwargs=SMALL)
    yield made
    made.close()


def told(chunk: StreamingChunk) -> None:
    """A callback that can be serialised."""
    TOLD.append(chunk)


TOLD: list[StreamingChunk] = []


def weather(city: str) -> str:
    """A tool that can be serialised."""
    return f"It is sunny in {city}."


TOOL = Tool(
    name="weather",
    description="The weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
    function=weather,
)


def test_making_a_component_loads_nothing():
    TierflowChatGenerator("no/such/model.gguf", device=CPU)
    generator = TierflowChatGenerator("no/such/model.gguf", device=CPU)
    with pytest.raises(tierflow.errors.FileError, match="no/such/model.gguf"):
        generator.warm_up()


def test_answers_are_the_engines(generator, smollm2):
    messages = [ChatMessage.from_system("Be brief."), ChatMessage.from_user("Name a colour.")]
    reply = generator.run(messages)["replies"][0]
    with tierflow.Engine(smollm2, device="cpu", ctx_size=512) as engine:
        asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
        assert reply.text == engine.chat(asked, **GREEDY)["content"] != ""
    assert reply.meta["usage"]["completion_tokens"] <= 12 and reply.meta["finish_reason"] in ("length", "stop")
    assert len(generator.run("Name a colour.", generation_kwargs={"n": 2})["replies"]) == 2


def test_streams_tell_a_callback(generator):
    whole = generator.run("Name a colour.")["replies"][0]
    TOLD.clear()
    streamed = generator.run("Name a colour.", streaming_callback=told)["replies"][0]
    assert streamed.text == whole.text == "".join(chunk.content for chunk in TOLD)
    assert streamed.meta["usage"]["completion_tokens"] == whole.meta["usage"]["completion_tokens"]
    assert [chunk.finish_reason for chunk in TOLD if chunk.finish_reason] == [whole.meta["finish_reason"]]


def test_run_async_leaves_the_loop_free(generator):
    whole = generator.run("Name a colour.")["replies"][0]
    pieces, ticks = [], []

    async def tell(chunk: StreamingChunk) -> None:
        pieces.append(chunk.content)

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    async def ask():
        ticker = asyncio.create_task(tick())
        replies = await asyncio.gather(generator.run_async("Name a colour.", streaming_callback=tell), generator.run_async("Name a colour."))
        ticker.cancel()
        return [reply["replies"][0].text for reply in replies]

    assert asyncio.run(ask()) == [whole.text] * 2
    assert "".join(pieces) == whole.text and len(ticks) > 5


def test_tools_are_called_and_answered(generator):
    choice = {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "max_tokens": 80}
    question = ChatMessage.from_user("What is the weather in Paris?")
    TOLD.clear()
    whole = generator.run([question], tools=[TOOL], generation_kwargs=choice)["replies"][0]
    streamed = generator.run([question], tools=[TOOL], generation_kwargs=choice, streaming_callback=told)["replies"][0]
    for reply in (whole, streamed):
        assert reply.tool_calls[0].tool_name == "weather" and "city" in reply.tool_calls[0].arguments
    assert streamed.tool_calls[0].arguments == whole.tool_calls[0].arguments
    assert any(chunk.tool_calls for chunk in TOLD)
    call = ToolCall("weather", {"city": "Paris"}, id="call_1")
    results = [question, ChatMessage.from_assistant(tool_calls=[call]), ChatMessage.from_tool("It is sunny in Paris.", origin=call)]
    assert generator.run(results)["replies"][0].text


def test_a_pipeline_is_serialised_with_its_device(smollm2):
    device = ComponentDevice.from_multiple(DeviceMap({"": Device.cpu()}))
    for device, engine in ((CPU, SMALL), (device, SMALL)):
        generator = TierflowChatGenerator(
            smollm2,
            device=device,
            max_memory={"cpu": "2GiB"},
            generation_kwargs=GREEDY,
            streaming_callback=told,
            tools=[TOOL],
            engine_kwargs=engine,
        )
        pipeline = Pipeline()
        pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("Name a {{ thing }}.")], required_variables=["thing"]))
        pipeline.add_component("generator", generator)
        pipeline.connect("prompt.prompt", "generator.messages")
        # Functions of this file are on no list of trusted ones.
        again = Pipeline.loads(pipeline.dumps(), unsafe=True)
        read = again.get_component("generator")
        assert read.to_dict() == generator.to_dict() and read.device == device and read.streaming_callback is told
        assert read.tools[0].name == "weather" and read.tools[0].function is weather
        TOLD.clear()
        reply = again.run({"prompt": {"thing": "colour"}})["generator"]["replies"][0]
        assert reply.text == "".join(chunk.content for chunk in TOLD)
        read.close()


def test_gpus_are_named_as_haystack_names_them():
    generator = TierflowChatGenerator("m", device=ComponentDevice.from_str("cuda:1"), max_memory={1: "4GiB"})
    again = TierflowChatGenerator.from_dict(json.loads(json.dumps(generator.to_dict())))
    assert again.device.to_torch_str() == "cuda:1" and again.max_memory == {"gpu:1": "4GiB"}
    several = ComponentDevice.from_multiple(DeviceMap({"model": Device.gpu(0), "lm_head": Device.disk()}))
    with pytest.raises(ValueError, match="device_map"):
        TierflowChatGenerator("m", device=several, device_map="balanced")


def test_embedders_give_the_engines_vectors(tiny):
    with tierflow.Engine(tiny, device="cpu", ctx_size=128, embedding=True) as engine:
        expected = engine.embed(["title\none", "two", "a query"]).tolist()
    query = TierflowTextEmbedder(tiny, device=CPU, prefix="a ", engine_kwargs={"ctx_size": 128})
    documents = TierflowDocumentEmbedder(tiny, device=CPU, meta_fields_to_embed=["title"], engine_kwargs={"ctx_size": 128})
    pipeline = Pipeline()
    pipeline.add_component("query", query)
    pipeline.add_component("documents", documents)
    again = Pipeline.loads(pipeline.dumps())
    given = [Document(content="one", meta={"title": "title"}), Document(content="two")]
    answer = again.run({"query": {"text": "query"}, "documents": {"documents": given}})
    assert answer["query"]["embedding"] == expected[2]
    assert [document.embedding for document in answer["documents"]["documents"]] == expected[:2]
    assert given[0].embedding is None
    assert asyncio.run(query.run_async("query"))["embedding"] == expected[2]
    assert asyncio.run(documents.run_async([]))["documents"] == []
    with pytest.raises(TypeError, match="DocumentEmbedder"):
        query.run(given)
    with pytest.raises(TypeError, match="TextEmbedder"):
        documents.run("query")
    for component in (query, again.get_component("query"), documents, again.get_component("documents")):
        component.close()


def test_an_async_pipeline(generator):
    pipeline = Pipeline()
    pipeline.add_component("generator", TierflowChatGenerator.from_dict(generator.to_dict()))
    answer = asyncio.run(pipeline.run_async({"generator": {"messages": [ChatMessage.from_user("Name a colour.")]}}))
    assert answer["generator"]["replies"][0].text == generator.run("Name a colour.")["replies"][0].text
    pipeline.get_component("generator").close()


def test_packages_are_namespaces():
    import haystack_integrations
    import haystack_integrations.components.generators

    assert getattr(haystack_integrations, "__file__", None) is None
    assert getattr(haystack_integrations.components.generators, "__file__", None) is None
