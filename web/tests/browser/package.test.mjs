// The package as a developer of pages uses it: ending answers and engines, on plain http, what is refused.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { after } from 'node:test';

import { PROGRAM, TINY, answered, chooseUrl, limitAnswers, loaded, open, runInPage, send, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

/** A name for this machine that browsers do not trust as they do `localhost`. */
const PLAIN = 'plain.test';
let browser;
let tiny;

before(async () => {
  browser = await start({ flags: [`--host-resolver-rules=MAP ${PLAIN} 127.0.0.1`] });
  tiny = `${browser.server.address}/models/tiny.gguf`;
});
after(() => browser.close());

const inPage = (work, argument) => runInPage(browser, work, argument);

for (const device of ['cpu', 'gpu:0']) {
  test(`stop, signal and leaving the loop end an answer within one token, on ${device}`, async () => {
    const found = await inPage(
      async ({ Engine }, { tiny, device }) => {
        const engine = new Engine();
        await engine.load(tiny, { device, ctx_size: 512 });
        const body = { messages: [{ role: 'user', content: 'Go on' }], temperature: 0, max_tokens: 400 };
        const seen = {};
        // A signal, raised with the third token: how many were computed in all.
        const stop = new AbortController();
        const onProgress = ({ stage, done }) => stage === 'answer' && done === 3 && stop.abort();
        const error = await engine.chat.completions.create(body, { signal: stop.signal, onProgress }).catch((thrown) => thrown);
        seen.whole = { name: error.name, n: error.usage?.completion_tokens };
        const during = new AbortController();
        const stream = await engine.chat.completions.create({ ...body, stream: true }, { signal: during.signal, onProgress: ({ stage, done }) => stage === 'answer' && done === 3 && during.abort() });
        const streamed = await (async () => {
          for await (const chunk of stream) void chunk;
        })().catch((thrown) => thrown);
        seen.stream = { name: streamed.name, n: streamed.usage?.completion_tokens };
        let nTold = 0;
        let atLeave = 0;
        for await (const chunk of await engine.chat.completions.create({ ...body, stream: true }, { onProgress: ({ stage, done }) => stage === 'answer' && (nTold = done) })) {
          if (!chunk.choices[0].delta.content) continue;
          atLeave = nTold;
          break;
        }
        // In its turn, so behind the end of the answer.
        await engine.devices();
        seen.left = { atLeave, nTold };
        const { usage } = await engine.chat.completions.create({ ...body, max_tokens: 2 });
        seen.again = usage.completion_tokens;
        return seen;
      },
      { tiny, device },
    );
    for (const { name, n } of [found.whole, found.stream]) {
      assert.equal(name, 'AbortError');
      assert.ok(n >= 3 && n <= 4, `${n} tokens, where the signal came with the third`);
    }
    assert.ok(found.left.atLeave > 0 && found.left.nTold <= found.left.atLeave + 1, JSON.stringify(found.left));
    assert.equal(found.again, 2, 'the engine answers again');
  });
}

test('a long prompt is read in parts, whose progress is reported, and a signal ends it between two of them', async () => {
  const { steps, n, error, whole } = await inPage(async ({ Engine }, { tiny }) => {
    const engine = new Engine();
    await engine.load(tiny, { device: 'cpu', ctx_size: 512, ubatch_size: 16 });
    const body = { messages: [{ role: 'user', content: 'word '.repeat(40) }], temperature: 0, max_tokens: 1, raw: true };
    const stop = new AbortController();
    const steps = [];
    const onProgress = ({ stage, done, total }) => {
      steps.push([stage, done, total]);
      if (steps.length === 2) stop.abort();
    };
    const error = await engine.chat.completions.create(body, { signal: stop.signal, onProgress }).catch((thrown) => thrown);
    const whole = [];
    await engine.chat.completions.create(body, { onProgress: ({ stage, done, total }) => whole.push([stage, done, total]) });
    return { steps, n: error.usage?.prompt_tokens, error: error.name, whole };
  }, { tiny });
  assert.equal(error, 'AbortError');
  assert.ok(steps.every(([stage]) => stage === 'prompt') && steps.length <= 3, JSON.stringify(steps));
  const [, , total] = steps[0];
  assert.ok(n > 0 && n <= 32 && n < total, `${n} of ${total} tokens were read`);
  assert.ok(whole.every(([stage, done], index) => index === 0 || stage === 'answer' || done > whole[index - 1][1]), JSON.stringify(whole));
  assert.deepEqual(whole.at(-1), ['answer', 1, 1]);
  assert.ok(whole[0][1] > 0, 'what was read before the signal is not read again');
});

test('several answers, how likely tokens are, biases, and texts to continue', async () => {
  const found = await inPage(async ({ Engine }, { tiny }) => {
    const engine = new Engine();
    await engine.load(tiny, { device: 'cpu', ctx_size: 256 });
    const body = { messages: [{ role: 'user', content: 'Go on' }], temperature: 0, max_tokens: 3 };
    const scored = await engine.chat.completions.create({ ...body, n: 2, logprobs: true, top_logprobs: 2 });
    const [first] = scored.usage.extra.tokens;
    const biased = await engine.chat.completions.create({ ...body, logit_bias: { [first]: -100 } });
    const raw = await engine.chat.completions.create({ ...body, raw: true });
    const text = await engine.completions.create({ prompt: 'Go on', temperature: 0, max_tokens: 3, logprobs: 1 });
    const began = await engine.chat.completions.create({ ...body, messages: [...body.messages, { role: 'assistant', content: 'Well' }], continue_final_message: true });
    const refused = await engine.chat.completions.create({ ...body, continue_final_message: true }).catch(({ name, option }) => [name, option]);
    const stop = new AbortController();
    stop.abort();
    const aborted = await Promise.all([engine.plan(tiny, { signal: stop.signal }), engine.storage.list({ signal: stop.signal })].map((asked) => asked.catch(({ name }) => name)));
    return { scored, first, biased: biased.usage.extra.tokens[0], raw: raw.choices[0].message.content, text, began: began.usage.completion_tokens, refused, aborted };
  }, { tiny });
  const [one, other] = found.scored.choices;
  assert.deepEqual([one.message, one.index, other.index], [other.message, 0, 1]);
  assert.equal(found.scored.usage.completion_tokens, one.logprobs.content.length + other.logprobs.content.length);
  for (const { token, logprob, top_logprobs } of one.logprobs.content) {
    assert.ok(logprob <= 0 && top_logprobs.length === 2, JSON.stringify(top_logprobs));
    assert.deepEqual(top_logprobs[0], { token, logprob, bytes: null }, 'the likeliest is what comes');
  }
  assert.notEqual(found.biased, found.first);
  const { text, logprobs } = found.text.choices[0];
  assert.ok(text.length > 0 && text === found.raw, `${text} / ${found.raw}`);
  assert.equal(logprobs.tokens.length, found.text.usage.completion_tokens);
  assert.ok(found.began > 0);
  assert.deepEqual(found.refused, ['InvalidArgumentError', 'continue_final_message']);
  assert.deepEqual(found.aborted, ['AbortError', 'AbortError']);
});

const COLOUR = { type: 'object', properties: { colour: { enum: ['red', 'green'] } }, required: ['colour'], additionalProperties: false };

test('answers keep to schemas, grammars and regular expressions, and are the native program’s', async () => {
  const forms = { json_schema: JSON.stringify(COLOUR), grammar: 'root ::= ("yes" | "no") "!"', regex: '[a-c]{3}-[0-9]' };
  const found = await inPage(async ({ Engine }, { tiny, forms }) => {
    const engine = new Engine();
    await engine.load(tiny, { device: 'cpu', ctx_size: 256 });
    const answer = async (body) => (await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Which colour?' }], temperature: 0, max_tokens: 40, ...body })).choices[0];
    const schema = JSON.parse(forms.json_schema);
    const refusal = (body) => answer(body).then(() => 'answered', ({ name, option }) => `${name} ${option}`);
    return {
      json_schema: await answer({ response_format: { type: 'json_schema', json_schema: { name: 'c', schema } } }),
      grammar: await answer({ grammar: forms.grammar }),
      regex: await answer({ regex: forms.regex }),
      refused: [await refusal({ grammar: 'root ::= (' }), await refusal({ regex: '(' }), await refusal({ json_schema: { type: 'colour' } })],
    };
  }, { tiny, forms });
  for (const [name, form] of Object.entries(forms)) {
    const words = ['run', TINY, '--device', 'cpu', '--prompt', 'Which colour?', '--temperature', '0', '--max-tokens', '40', '--json', `--${name.replace('_', '-')}`, form];
    const { stdout, stderr } = spawnSync(PROGRAM, words, { encoding: 'utf8' });
    assert.equal(found[name].message.content, JSON.parse(stdout || `"${stderr}"`).text, name);
    assert.equal(found[name].finish_reason, 'stop', name);
  }
  assert.ok(['red', 'green'].includes(JSON.parse(found.json_schema.message.content).colour));
  assert.match(found.grammar.message.content, /^(yes|no)!$/);
  assert.match(found.regex.message.content, /^[a-c]{3}-[0-9]$/);
  assert.deepEqual(found.refused, ['InvalidArgumentError grammar', 'InvalidArgumentError regex', 'InvalidArgumentError json_schema']);
});

test('tools that must be called are called, by their schemas, whole and streamed; their results go on', async () => {
  const tools = [{ type: 'function', function: { name: 'paint', description: 'Paints', parameters: COLOUR } }];
  const found = await inPage(async ({ Engine }, { tiny, tools }) => {
    const engine = new Engine();
    await engine.load(tiny, { device: 'cpu', ctx_size: 1024 });
    const messages = [{ role: 'user', content: 'Paint it' }];
    const body = { messages, tools, tool_choice: 'required', parallel_tool_calls: false, temperature: 0, max_tokens: 80 };
    const { choices } = await engine.chat.completions.create(body);
    const deltas = [];
    for await (const chunk of await engine.chat.completions.create({ ...body, stream: true })) deltas.push(chunk.choices[0]);
    const [call] = choices[0].message.tool_calls;
    const after = await engine.chat.completions.create({ ...body, tool_choice: 'auto', max_tokens: 3, messages: [...messages, choices[0].message, { role: 'tool', tool_call_id: call.id, content: 'Done' }] });
    const refused = await engine.chat.completions.create({ ...body, tool_choice: { type: 'function', function: { name: 'dig' } } }).catch(({ name, option }) => `${name} ${option}`);
    return { choice: choices[0], deltas, n: after.usage.completion_tokens, refused };
  }, { tiny, tools });
  const { message, finish_reason } = found.choice;
  assert.equal(finish_reason, 'tool_calls');
  assert.equal(message.tool_calls.length, 1);
  const [{ function: called, id }] = message.tool_calls;
  assert.equal(called.name, 'paint');
  assert.match(id, /^[0-9a-f]{9}$/);
  assert.ok(['red', 'green'].includes(JSON.parse(called.arguments).colour));
  const [first, ...parts] = found.deltas.flatMap(({ delta }) => delta.tool_calls ?? []);
  assert.deepEqual([first.index, first.type, first.function.name], [0, 'function', 'paint']);
  assert.match(first.id, /^[0-9a-f]{9}$/);
  assert.ok(parts.length > 1 && parts.every((part) => part.index === 0 && !('id' in part) && !('name' in part.function)), JSON.stringify(parts));
  assert.deepEqual(JSON.parse([first, ...parts].map((part) => part.function.arguments).join('')), JSON.parse(called.arguments));
  assert.equal(found.deltas.at(-1).finish_reason, 'tool_calls');
  assert.ok(found.n > 0);
  assert.equal(found.refused, 'InvalidArgumentError tool_choice');
});

test('a conversation takes no more memory than one as long before it', async () => {
  const [first, second] = await inPage(async ({ Engine }, { tiny }) => {
    const engine = new Engine();
    await engine.load(tiny, { device: 'cpu', ctx_size: 1024 });
    /** The memory that is taken after a conversation of thirty messages. */
    const converse = async () => {
      const messages = [];
      for (let index = 0; index < 30; index += 1) {
        messages.push({ role: 'user', content: `Number ${index}` });
        const { choices } = await engine.chat.completions.create({ messages, temperature: 0, max_tokens: 1 });
        messages.push(choices[0].message);
      }
      const { wasm_bytes, devices } = await engine.memory();
      return wasm_bytes + devices.reduce((sum, { peak }) => sum + peak, 0);
    };
    return [await converse(), await converse()];
  }, { tiny });
  assert.ok(second <= 1.02 * first, `${first} bytes after one conversation, ${second} after another`);
});

test('texts become the vectors of the native program', async () => {
  const input = ['The lighthouse of Varn', 'Its door'];
  const { list, short, unasked, refused } = await inPage(async ({ Engine }, { tiny, input }) => {
    const engine = new Engine();
    await engine.load(tiny, { device: 'cpu', ctx_size: 128, embeddings: true });
    const told = [];
    const list = await engine.embeddings.create({ input }, { onProgress: ({ done, total }) => told.push(`${done}/${total}`) });
    const short = await engine.embeddings.create({ input: input[0], dimensions: 8 });
    const refusal = (asked) => asked.then(() => 'answered', ({ name, option }) => `${name} ${option}`);
    const refused = [await refusal(engine.embeddings.create({ input: [] })), await refusal(engine.embeddings.create({ input, dimensions: 1e6 }))];
    await engine.load(tiny, { device: 'cpu', ctx_size: 128 });
    return { list: { ...list, told }, short: short.data[0].embedding, unasked: await refusal(engine.embeddings.create({ input })), refused };
  }, { tiny, input });
  const { stdout, stderr } = spawnSync(PROGRAM, ['embed', TINY, '--device', 'cpu', '--json', ...input], { encoding: 'utf8' });
  const { embeddings } = JSON.parse(stdout || `"${stderr}"`);
  assert.deepEqual(list.told, ['1/2', '2/2']);
  assert.equal(list.usage.prompt_tokens, embeddings.reduce((sum, { n_tokens }) => sum + n_tokens, 0));
  for (const [index, { embedding }] of list.data.entries()) {
    const expected = embeddings[index].embedding;
    assert.equal(embedding.length, expected.length);
    embedding.forEach((value, at) => assert.ok(Math.abs(value - expected[at]) < 1e-3, `${index}, ${at}: ${value}, natively ${expected[at]}`));
  }
  assert.ok(short.length === 8 && Math.abs(Math.hypot(...short) - 1) < 1e-6);
  assert.equal(unasked, 'InvalidArgumentError embeddings');
  assert.deepEqual(refused, ['InvalidArgumentError input', 'InvalidArgumentError dimensions']);
});

test('an engine that is closed in the turn in which it loads leaves no worker, and can load again', async () => {
  // A page with no workers of its own.
  const page = await browser.context.newPage();
  await page.route('**/blank.html', (route) => route.fulfill({ contentType: 'text/html', body: '<!doctype html>' }));
  await page.goto(new URL('/blank.html', browser.address).href);
  const names = await page.evaluate(async (tiny) => {
    const { Engine } = await import(new URL('/index.js', location.href).href);
    const engine = new Engine();
    const first = engine.load(tiny, { device: 'cpu' }).then(() => 'loaded', (error) => error.name);
    engine.close();
    const second = engine.load(tiny, { device: 'cpu' }).then(() => 'loaded', (error) => error.name);
    engine.close();
    const kept = new Engine();
    const third = kept.load(tiny, { device: 'cpu' }).then(() => 'loaded', (error) => error.name);
    const names = await Promise.all([first, second, third]);
    const isDisposable = !Symbol.dispose || kept[Symbol.dispose] === kept.close;
    kept.close();
    return [...names, isDisposable, kept.loaded];
  }, tiny);
  assert.deepEqual(names, ['AbortError', 'AbortError', 'loaded', true, null]);
  // The last one has a second to give its files back.
  while (page.workers().length > 0) await page.waitForTimeout(100);
  await page.close();
});

test('on plain http the page plans, loads and chats', async () => {
  const page = await browser.context.newPage();
  const address = browser.server.address.replace('127.0.0.1', PLAIN);
  await page.goto(`${address}/page/`);
  await page.waitForFunction(() => !document.querySelector('#webgpu').textContent.startsWith('Asking'));
  assert.equal(await page.evaluate(() => isSecureContext), false);
  assert.match(await page.textContent('#webgpu'), /^The processor computes here: planning and chat work.*step that failed: navigator\.gpu/);
  await chooseUrl(page, `${address}/models/tiny.gguf`);
  await page.waitForSelector('#load:enabled');
  await page.click('#load');
  await loaded(page);
  await limitAnswers(page, 4);
  await send(page, 'Hello');
  await answered(page);
  assert.equal(await page.isVisible('#chat-error'), false);
  assert.match(await page.textContent('#messages .assistant .note'), /^Cut off after 4 tokens/);
  await page.close();
});

test('what is not known is named in the error, in the words of the package', async () => {
  const errors = await inPage(async ({ Engine }, { tiny }) => {
    const engine = new Engine();
    const errorOf = async (work) => {
      const { name, message, option } = await work().catch((error) => error);
      return { name, message, option };
    };
    const planned = [{ ctx: 5 }, { ctx_size: 'long' }, { device: 'tpu' }, { max_memory: { 'gpu:0': 1 }, device: 'gpu:0' }];
    const errors = [];
    for (const options of planned) errors.push(await errorOf(() => engine.plan(tiny, options)));
    errors.push(await errorOf(() => engine.plan(tiny, {}, '{"schema": "tierflow.devices/1", "devices": [{"device": 7}]}')));
    await engine.load(tiny, { device: 'cpu', ctx_size: 128 });
    const messages = [{ role: 'user', content: 'word '.repeat(200) }];
    errors.push(await errorOf(() => engine.chat.completions.create({ messages })));
    errors.push(await errorOf(() => engine.chat.completions.create({ messages: [{ role: 'user', content: 'a' }], temperature: 5000 })));
    return errors;
  }, { tiny });
  for (const { message } of errors) assert.doesNotMatch(message, /--[a-z]|line \d|column \d/, message);
  assert.deepEqual(errors.map(({ name }) => name), ['InvalidArgumentError', 'InvalidArgumentError', 'InvalidArgumentError', 'DoesNotFitError', 'InvalidFileError', 'ContextFullError', 'InvalidArgumentError']);
  assert.deepEqual(errors.map(({ option }) => option), ['ctx', 'ctx_size', 'device', undefined, undefined, undefined, 'temperature']);
});
