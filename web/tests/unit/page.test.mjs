// The pure parts of package and page: figures, lanes, blocks of the map, descriptions of models, requests in OpenAI's shape.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { recordsOf } from '../../page/examples.js';
import { expertsInWords, since } from '../../page/experts.js';
import { bytes, parseBytes, timeLeft } from '../../page/format.js';
import { gaps, lastForwards, summarise, union } from '../../page/lanes.js';
import { axisOf, blocksOf, sizeOn } from '../../page/tier-map.js';
import { Completions } from '../../src/completions.js';
import { Connection } from '../../src/connection.js';
import { describeSources, sameSources } from '../../src/describe.js';
import { DoesNotFitError, fromPlain, toPlain } from '../../src/errors.js';

const MIB = 2 ** 20;

test('sizes are read as they are written', () => {
  for (const [text, size] of [['40 MiB', 40 * MIB], ['40m', 40 * MIB], ['1.5 GiB', 1.5 * 1024 * MIB], ['2GB', 2e9], ['4096', 4096], ['7 B', 7]]) {
    assert.equal(parseBytes(text), size, text);
  }
  for (const text of ['', 'much', '-1', '1 MiB 2', '1e9']) assert.equal(parseBytes(text), null, text);
  assert.deepEqual([0.2, 89, 188.2, 9000].map(timeLeft), ['1 s', '89 s', '3 min', '2.5 h']);
  assert.equal(bytes(40 * MIB), '40.0 MiB');
  assert.equal(parseBytes(bytes(40 * MIB)), 40 * MIB);
});

test('examples are blocks: a question and its answer, or a text; lines of JSON stay as they are', () => {
  const chat = (question, answer) => ({ messages: [{ role: 'user', content: question }, { role: 'assistant', content: answer }] });
  assert.deepEqual(recordsOf('Who?\nEdda.\n\n  \nHow high? \nForty\n  metres.\n \nIt stands alone.\n'), [chat('Who?', 'Edda.'), chat('How high?', 'Forty\n  metres.'), { text: 'It stands alone.' }]);
  assert.deepEqual(recordsOf('A\r\nB\r\n\r\nC'), [chat('A', 'B'), { text: 'C' }]);
  assert.equal(recordsOf('{"text": "x"}\n\n{"text": "y"}'), '{"text": "x"}\n\n{"text": "y"}');
  assert.deepEqual(recordsOf(' \n\n'), []);
});

test('experts are counted since the answer before, and told in words', () => {
  const layer = (name, n_hits, n_misses, n_on_host, uploaded) => ({ name, n_hits, n_misses, n_on_host, uploaded });
  const now = since([layer('a', 10, 4, 0, 2048), layer('b', 3, 3, 1, 1024)], [layer('a', 4, 2, 0, 1024)]);
  assert.deepEqual(now, [layer('a', 6, 2, 0, 1024), layer('b', 3, 3, 1, 1024)]);
  assert.equal(expertsInWords(now), '64 % of 14 experts were in the cache, 7 % computed by the processor; 2.0 KiB were brought.');
  assert.equal(expertsInWords([]), null);
  assert.equal(expertsInWords([layer('a', 0, 0, 0, 0)]), null);
});

const span = (lane, start_secs, end_secs, forward = 0, size_bytes = 0) => ({ lane, start_secs, end_secs, forward, chunk: 0, size_bytes });

test('lanes: what overlaps counts once, gaps are what is left, the longest lane is the bound', () => {
  assert.deepEqual(union([span('x', 2, 3), span('x', 0, 1), span('x', 0.5, 1.5)]), [[0, 1.5], [2, 3]]);
  assert.deepEqual(gaps([[1, 2], [3, 4]], 0, 4), [[0, 1], [2, 3]]);
  assert.deepEqual(lastForwards([span('x', 0, 1, 0), span('x', 1, 2, 1), span('x', 2, 3, 2)], 2).map(({ forward }) => forward), [1, 2]);
  const spans = [span('compute', 0, 4, 0), span('upload', 3, 7, 0, 10), span('upload', 7, 8, 1, 30)];
  const { overlapped, bound, bytesPerForward } = summarise(spans);
  assert.ok(Math.abs(overlapped - 1 / 5) < 1e-12, String(overlapped));
  assert.equal(bound, 'upload');
  assert.equal(bytesPerForward, 20);
});

const none = { weights: 0, kv_cache: 0, activations: 0, slots: 0, staging: 0 };
const plan = {
  units: [
    { name: 'embed', stored_on: 'cpu', execute_on: 'cpu', size_bytes: 50, chunks: { start: 0, end: 0 } },
    { name: 'a', stored_on: 'gpu:0', execute_on: 'gpu:0', size_bytes: 10, chunks: { start: 0, end: 1 } },
    { name: 'b', stored_on: 'cpu', execute_on: 'gpu:0', size_bytes: 20, chunks: { start: 1, end: 3 } },
    { name: 'c', stored_on: 'disk', execute_on: 'gpu:0', size_bytes: 3, chunks: { start: 2, end: 3 } },
    { name: 'head', stored_on: 'cpu', execute_on: 'gpu:0', size_bytes: 0, chunks: { start: 3, end: 4 } },
  ],
  chunks: [
    { work: [{ unit: 1 }], stored_on: 'gpu:0', size_bytes: 10 },
    { work: [{ unit: 2 }], stored_on: 'cpu', size_bytes: 15 },
    { work: [{ unit: 2 }, { unit: 3 }], stored_on: 'disk', size_bytes: 5 },
    { work: [{ unit: 4 }], stored_on: 'cpu', size_bytes: 50 },
  ],
  devices: [
    { device: 'gpu:0', budget: 40, used: { ...none, weights: 10, kv_cache: 4, slots: 12 }, ring: { n_slots: 2, slot_bytes: 6 } },
    { device: 'cpu', budget: 1000, used: { ...none, weights: 65 }, ring: null },
    { device: 'disk', budget: null, used: none, ring: null },
  ],
};

test('the blocks of a bar add up to what the device holds; a head that is the embedding counts once', () => {
  const [gpu, host, disk] = plan.devices;
  for (const device of [gpu, host]) {
    const held = Object.values(device.used).reduce((all, size) => all + size, 0);
    assert.equal(sizeOn(plan, device), held, device.device);
  }
  assert.equal(sizeOn(plan, disk), 5, 'what is read from a disk counts as its own');
  assert.deepEqual(blocksOf(plan, plan.devices[0]).map(({ kind }) => kind), ['resident', 'kv', 'slot', 'slot']);
  assert.deepEqual(blocksOf(plan, plan.devices[1]).map(({ kind }) => kind), ['host', 'host']);
  assert.deepEqual(blocksOf(plan, plan.devices[2]).map(({ kind }) => kind), ['disk']);
  assert.equal(blocksOf(plan, plan.devices[2])[0].label, 'b … c, computed by gpu:0', 'what shares a slot is one block');
  assert.equal(axisOf(plan), 65, 'a budget far beyond what is used does not shrink the bars');
});

const file = (name) => new File(['x'], name);

test('models: one .gguf, a folder of which only a model’s files are taken, an address; else what is missing', () => {
  assert.equal(describeSources(file('m.gguf')).length, 1);
  const folder = describeSources([file('config.json'), file('a.safetensors'), file('README.md'), file('pytorch_model.bin'), file('tokenizer.json')]);
  assert.deepEqual(folder.map(({ name }) => name), ['config.json', 'a.safetensors', 'tokenizer.json']);
  assert.deepEqual(describeSources('https://example.org/a/b.gguf?x=1')[0], { kind: 'url', name: 'b.gguf', url: 'https://example.org/a/b.gguf?x=1', keep: false });
  const split = [file('a-00001-of-00002.gguf'), file('a-00002-of-00002.gguf')];
  assert.equal(describeSources(split).length, 2, 'all parts of one split model');
  assert.throws(() => describeSources([split[0], file('b-00002-of-00002.gguf')]), { message: /choose one/ });
  assert.deepEqual(describeSources('https://example.org/a/b-00002-of-00003.gguf?x=1').map(({ name, url }) => [name, url])[0], ['b-00001-of-00003.gguf', 'https://example.org/a/b-00001-of-00003.gguf?x=1']);
  assert.throws(() => describeSources([file('a.gguf'), file('b.gguf')]), { name: 'InvalidArgumentError', message: /choose one/ });
  assert.throws(() => describeSources([]), { name: 'InvalidArgumentError', message: /no \.gguf/ });
  assert.throws(() => describeSources('ftp://x/y.gguf'), { name: 'InvalidArgumentError' });
  assert.throws(() => describeSources({ url: 'no address' }), { name: 'InvalidArgumentError' });
  const hub = 'https://huggingface.co/o/r/blob/main/a%20b.gguf?download=true';
  assert.deepEqual(describeSources(hub)[0], { kind: 'url', name: 'a b.gguf', url: hub.replace('blob', 'resolve'), keep: false });
  assert.equal(describeSources('https://example.org/%zz.gguf?download=true')[0].name, '%zz.gguf');
  const one = file('m.gguf');
  assert.ok(sameSources(describeSources(one), describeSources(one)));
  assert.ok(!sameSources(describeSources(one), describeSources('https://example.org/m.gguf')));
});

test('errors cross to the page with class, text and figures', () => {
  const error = fromPlain(structuredClone(toPlain(new DoesNotFitError('no room', { device: 'gpu:0', needed: 2, available: 1 }))));
  assert.ok(error instanceof DoesNotFitError);
  assert.deepEqual([error.name, error.message, error.needed], ['DoesNotFitError', 'no room', 2]);
  assert.equal(fromPlain({ name: 'AbortError', message: 'x', partial: { n: 1 } }).partial.n, 1);
  assert.equal(fromPlain({ name: 'Unheard', message: 'x' }).name, 'TierflowError');
});

/** A connection whose workers only note the messages that they get. */
function connected() {
  const workers = [];
  const start = () => {
    const worker = { received: [], terminated: false, postMessage: (data) => worker.received.push(data), terminate: () => (worker.terminated = true) };
    workers.push(worker);
    return worker;
  };
  return { workers, connection: new Connection(start, () => {}) };
}

test('a worker that is closed gives its files back and ends itself, and another begins meanwhile', async (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] });
  const { workers, connection } = connected();
  for (let n = 0; n < 2; n += 1) {
    const asked = connection.call('plan');
    connection.close();
    await assert.rejects(asked, { name: 'AbortError' });
    assert.deepEqual(workers[n].received.at(-1), { end: true });
    assert.equal(workers[n].terminated, false);
  }
  const [first, second] = workers;
  first.onmessage({ data: { ended: true } });
  assert.deepEqual([first.terminated, second.terminated], [false, false]);
  context.mock.timers.tick(1000);
  assert.deepEqual([first.terminated, second.terminated], [false, true], 'one that does not end itself is ended all the same');
});

test('a step that was received is acknowledged in a task of its own, behind what its receiver says', async () => {
  const { workers, connection } = connected();
  const signal = new AbortController();
  const asked = connection.call('generate', {}, { signal: signal.signal, onEvent: () => signal.abort() });
  const [worker] = workers;
  worker.onmessage({ data: { id: 1, event: { token: 1, text: 'a' }, step: 1 } });
  assert.deepEqual(worker.received.at(-1), { id: 1, cancel: true });
  while (worker.received.at(-1).taken === undefined) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(worker.received.slice(-2), [{ id: 1, cancel: true }, { id: 1, taken: 1 }]);
  worker.onmessage({ data: { id: 1, value: 'ended' } });
  assert.equal(await asked, 'ended');
});

/** Completions over an engine that says three words. */
function completions() {
  const seen = {};
  const generate = async (request, { signal, onEvent }) => {
    seen.request = request;
    seen.signal = signal;
    for (const [token, text] of ['one ', 'two ', 'three'].entries()) {
      await new Promise((resolve) => setTimeout(resolve, 2));
      if (signal?.aborted) throw Object.assign(new DOMException('stopped', 'AbortError'), { partial: { n_prompt: 2, n_generated: token } });
      onEvent({ token, text, reasoning: '' });
    }
    return { text: 'one two three', finish_reason: 'length', n_prompt: 2, n_cached: 4, n_generated: 3, tokens: [0, 1, 2] };
  };
  return { seen, generate, create: new Completions(generate, () => 'tiny') };
}

const messages = [{ role: 'user', content: 'count' }];

test('a completion has OpenAI’s shape', async () => {
  const { seen, create } = completions();
  const answer = await create.create({ messages, max_completion_tokens: 3, stop: 'x', temperature: 0 });
  assert.deepEqual(seen.request, { messages, max_tokens: 3, temperature: 0, stop: ['x'] });
  assert.equal(answer.object, 'chat.completion');
  assert.deepEqual(answer.choices[0].message, { role: 'assistant', content: 'one two three' });
  assert.equal(answer.choices[0].finish_reason, 'length');
  assert.deepEqual([answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model], [6, 9, 'tiny']);
});

test('a stream gives the role, the text in parts, the reason and on demand the usage', async () => {
  const { create } = completions();
  const chunks = [];
  for await (const chunk of await create.create({ messages, stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join(''), 'one two three');
  assert.equal(chunks.at(-2).choices[0].finish_reason, 'length');
  assert.equal(chunks.at(-1).usage.completion_tokens, 3);
});

test('a signal ends a stream with an AbortError that tells how far it came; leaving the loop stops the engine', async () => {
  const { create } = completions();
  const controller = new AbortController();
  const stream = await create.create({ messages, stream: true }, { signal: controller.signal });
  await assert.rejects(
    (async () => {
      for await (const chunk of stream) if (chunk.choices[0].delta.content) controller.abort();
    })(),
    (error) => error.name === 'AbortError' && error.usage.completion_tokens === 1,
  );
  const other = completions();
  for await (const chunk of await other.create.create({ messages, stream: true })) if (chunk.choices[0].delta.content) break;
  assert.ok(other.seen.signal.aborted);
});

test('several answers have seeds of their own, and the prompt counts once', async () => {
  const { seen, create } = completions();
  const answer = await create.create({ messages, n: 3, seed: 5 });
  assert.deepEqual(answer.choices.map(({ index }) => index), [0, 1, 2]);
  assert.equal(seen.request.seed, 7);
  assert.deepEqual([answer.usage.prompt_tokens, answer.usage.completion_tokens], [6, 9]);
  const streamed = [];
  for await (const { choices } of await create.create({ messages, n: 2, stream: true })) if (choices[0].finish_reason) streamed.push(choices[0].index);
  assert.deepEqual(streamed, [0, 1]);
});

test('what is thought and how likely tokens are stand beside the answer, whole and streamed', async () => {
  const scored = { token: 'b', logprob: -1, bytes: null, top_logprobs: [] };
  const generate = async (request, { onEvent }) => {
    onEvent({ done: 1, total: 2 });
    onEvent({ token: 1, text: '', reasoning: 'a' });
    onEvent({ token: 2, text: 'b', reasoning: '', logprobs: scored });
    onEvent({ text: 'c', reasoning: '' });
    return { text: 'bc', reasoning: 'a', finish_reason: 'stop', n_prompt: 1, n_generated: 2, tokens: [1, 2] };
  };
  const create = new Completions(generate, () => 'tiny');
  const steps = [];
  const { choices } = await create.create({ messages, logprobs: true }, { onProgress: ({ stage, done }) => steps.push([stage, done]) });
  assert.deepEqual(choices[0].message, { role: 'assistant', content: 'bc', reasoning_content: 'a' });
  assert.deepEqual(choices[0].logprobs, { content: [scored] });
  assert.deepEqual(steps, [['prompt', 1], ['answer', 1], ['answer', 2]]);
  const deltas = [];
  for await (const { choices: [{ delta, logprobs }] } of await create.create({ messages, logprobs: true, stream: true })) deltas.push([delta, logprobs]);
  assert.deepEqual(deltas.slice(1, -1), [[{ reasoning_content: 'a' }, null], [{ content: 'b' }, { content: [scored] }], [{ content: 'c' }, null]]);
});

test('a text is continued as it is, in the shape of OpenAI’s older API', async () => {
  const { seen, generate } = completions();
  const create = Completions.ofText(generate, () => 'tiny');
  const answer = await create.create({ prompt: 'Once', max_tokens: 3, logprobs: 2 });
  assert.deepEqual(seen.request, { prompt: 'Once', max_tokens: 3, raw: true, logprobs: 2 });
  assert.deepEqual([answer.object, answer.choices[0].text], ['text_completion', 'one two three']);
  const texts = [];
  for await (const { choices } of await create.create({ prompt: 'Once', stream: true })) texts.push(choices[0].text);
  assert.equal(texts.join(''), 'one two three');
  for (const body of [{}, { prompt: ['a', 'b'] }, { prompt: 'a', messages }]) await assert.rejects(create.create(body), { name: 'InvalidArgumentError' });
});

test('requests that make no sense are refused with the field’s name', async () => {
  const { create } = completions();
  for (const body of [{}, { messages: [] }, { messages: [{ role: 'god', content: 'x' }] }, { messages: [{ role: 'user', content: 7 }] }]) {
    await assert.rejects(create.create(body), { name: 'InvalidArgumentError', message: /^messages: / });
  }
  for (const n of [0, 17, 1.5, '2']) await assert.rejects(create.create({ messages, n }), { name: 'InvalidArgumentError', message: /^n: / });
});

test('what the engine has is passed on; what it has not is refused by its name, unless it asks for nothing', async () => {
  const { seen, create } = completions();
  const passed = {
    ...{ temperature: 0.5, top_k: 3, top_p: 0.9, min_p: 0.1, repeat_penalty: 1.2, repeat_last_n: 32, presence_penalty: 0.5, frequency_penalty: -1 },
    ...{ logit_bias: { 5: -2 }, seed: 7, raw: true, continue_final_message: true, stop: ['x', 'y'], max_tokens: 4 },
  };
  await create.create({ messages, ...passed });
  assert.deepEqual(seen.request, { messages, ...passed });
  const nothing = { n: 1, tools: [], response_format: { type: 'text' }, logprobs: false, seed: null, user: 'me' };
  await create.create({ messages, ...nothing });
  assert.deepEqual(seen.request, { messages });
  await create.create({ messages, logprobs: true, top_logprobs: 3 });
  assert.deepEqual(seen.request, { messages, logprobs: 3 });
  const asked = { presence_penalty: '1', logit_bias: { five: 1 }, tools: [{}], response_format: { type: 'xml' }, grammar: 5, json_schema: [], logprobs: 5, top_logprobs: 21, prompt: 'x', temprature: 1, temperature: 'hot', max_tokens: -1, seed: 1.5, stop: [3], raw: 1 };
  for (const [option, value] of Object.entries(asked)) {
    await assert.rejects(create.create({ messages, [option]: value }), { name: 'InvalidArgumentError', option, message: new RegExp(`^${option}: `) });
  }
});

test('forms of answers are OpenAI’s, and one at a time', async () => {
  const { seen, create } = completions();
  const schema = { type: 'object', properties: { city: { type: 'string' } } };
  const forms = [
    [{ type: 'json_object' }, { json_schema: { type: 'object' } }],
    [{ type: 'json_schema', json_schema: { name: 'place', strict: true, schema } }, { json_schema: schema }],
    [{ type: 'grammar', grammar: 'root ::= "a"' }, { grammar: 'root ::= "a"' }],
  ];
  for (const [response_format, asked] of forms) {
    await create.create({ messages, response_format });
    assert.deepEqual(seen.request, { messages, ...asked });
  }
  for (const response_format of [{ type: 'json_schema' }, 'json', { type: 'grammar', grammar: 7 }]) await assert.rejects(create.create({ messages, response_format }), { option: 'response_format' });
  await assert.rejects(create.create({ messages, response_format: { type: 'json_object' }, regex: 'a' }), { option: 'response_format' });
});

test('tools, calls and results cross in OpenAI’s shape', async () => {
  const tool = { type: 'function', function: { name: 'weather', description: 'Looks out', parameters: { type: 'object', properties: { city: { type: 'string' } } } } };
  const call = { id: 'a1', type: 'function', function: { name: 'weather', arguments: '{"city":"Varn"}' } };
  const parts = [
    { index: 0, ...call, function: { name: 'weather', arguments: '{"city":' } },
    { index: 0, function: { arguments: '"Varn"}' } },
  ];
  const result = { n_prompt: 1, n_generated: 1, prompt_secs: 0, ttft_secs: 0, decode_secs: 0, tokens: [1], finish_reason: 'stop', text: '', calls: [call] };
  let request = null;
  const create = new Completions(
    async (asked, { onEvent }) => {
      request = asked;
      onEvent({ token: 1, text: '', reasoning: '', calls: parts });
      return result;
    },
    () => 'model',
  );
  const asking = [...messages, { role: 'assistant', content: null, tool_calls: [call] }, { role: 'tool', tool_call_id: 'a1', content: 'Rain' }];
  const answer = await create.create({ messages: asking, tools: [{ type: 'function', function: { name: 'plain' } }, tool], tool_choice: 'required', parallel_tool_calls: false });
  assert.deepEqual(request.messages.slice(1), [{ role: 'assistant', content: '', tool_calls: [{ ...call, function: { name: 'weather', arguments: { city: 'Varn' } } }] }, { role: 'tool', content: 'Rain', tool_call_id: 'a1' }]);
  assert.deepEqual(request.tools, [{ type: 'function', function: { name: 'plain', description: '', parameters: { type: 'object', properties: {} } } }, tool]);
  assert.deepEqual([request.tool_choice, request.parallel_tool_calls], ['required', false]);
  assert.deepEqual(answer.choices[0], { index: 0, message: { role: 'assistant', content: null, tool_calls: [call] }, finish_reason: 'tool_calls', logprobs: null });
  const deltas = [];
  for await (const { choices } of await create.create({ messages, tools: [tool], stream: true })) deltas.push(choices[0]);
  assert.deepEqual(deltas.map(({ delta }) => delta), [{ role: 'assistant', content: '' }, ...parts.map((part) => ({ tool_calls: [part] })), {}]);
  assert.equal(deltas.at(-1).finish_reason, 'tool_calls');
  for (const tools of [[{ type: 'web_search' }], [{ type: 'function', function: { name: 'no spaces' } }], [{ type: 'function', function: { name: 'f', parameters: 7 } }], 'f']) {
    await assert.rejects(create.create({ messages, tools }), { name: 'InvalidArgumentError', option: 'tools' });
  }
});

test('a content may be texts in parts; other parts and fields of messages are refused by their names', async () => {
  const { seen, create } = completions();
  const parts = [{ type: 'text', text: 'one ' }, { type: 'text', text: 'two' }];
  await create.create({ messages: [{ role: 'developer', content: 'Be brief' }, { role: 'user', content: parts, name: undefined, tool_calls: [] }] });
  assert.deepEqual(seen.request.messages, [{ role: 'system', content: 'Be brief' }, { role: 'user', content: 'one two' }]);
  const refused = [
    [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }, /image_url/],
    [{ role: 'god', content: 'x' }, /`god`/],
    [{ role: 'assistant', content: 'x', tool_calls: [{}] }, /tool_calls/],
    [{ role: 'user', content: 'x', tool_calls: [{ function: { name: 'f' } }] }, /tool_calls/],
    [null, /undefined/],
  ];
  for (const [message, words] of refused) await assert.rejects(create.create({ messages: [message] }), { name: 'InvalidArgumentError', message: words });
});

test('the package is imported, and engines are made, where there is neither window nor worker', async () => {
  const { Engine, checkWebGpu, fromHub } = await import('../../src/index.js');
  const engine = new Engine();
  assert.equal(engine.loaded, null);
  engine.close();
  assert.equal((await checkWebGpu()).ok, false);
  assert.equal(await engine.storage.persist(), false);
  assert.equal(typeof fromHub, 'function');
});
