// Loading, chatting and storing in the page.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after } from 'node:test';

import { BUDGET, MODEL, NOT_SHORT, TINY, answered, ask, chooseFile, chooseUrl, figure, lastText, limitAnswers, load, loaded, open, openModels, openPlan, picture, planFor, screen, send, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

/** How much of each golden is compared: a software adapter takes seconds for a token. `--long` compares all of it. */
const N_TOKENS = process.env.TIERFLOW_WEB_LONG ? Infinity : 8;
const goldens = JSON.parse(readFileSync(new URL('../../../tests/golden/smollm2/golden.json', import.meta.url))).items;
/** A short selection asks only the first. */
const asked = NOT_SHORT.skip ? goldens.slice(0, 1) : goldens;
const SIZE = readFileSync(MODEL).length;
const END_OF_TURN = 2;
/** Host memory of the tests: too little for what the GPU does not hold, so that the rest streams from disk. */
const HOST_BUDGET = 48 * 2 ** 20;
let browser;
let model;
/** What the tiny model answers to `HELLO`. */
let tinyAnswer;
const HELLO = 'Hello';
const TINY_TOKENS = 8;

before(async () => {
  browser = await start();
  model = `${browser.server.address}/models/SmolLM2-135M-Instruct.Q4_1.gguf`;
  tinyAnswer = await answerOf(`${browser.server.address}/models/tiny.gguf`);
});
after(() => browser.close());

/** What a model says to `HELLO`, read from its server. */
async function answerOf(url) {
  const page = await open(browser);
  const answer = await page.evaluate(
    async ({ url, content, max_tokens }) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      const engine = new Engine();
      await engine.load(url, { device: 'gpu:0' });
      const { choices } = await engine.chat.completions.create({ messages: [{ role: 'user', content }], temperature: 0, max_tokens });
      return choices[0].message.content;
    },
    { url, content: HELLO, max_tokens: TINY_TOKENS },
  );
  await page.close();
  assert.ok(answer.length > 0);
  return answer;
}

test('the cpu answers all that the small model is known to answer', async () => {
  const page = await open(browser);
  const questions = goldens.map(({ prompt, new_ids }) => ({ content: prompt, max_tokens: new_ids.length }));
  const answers = await page.evaluate(
    async ({ url, questions }) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      const engine = new Engine();
      await engine.load(url, { device: 'cpu' });
      const answers = [];
      for (const { content, max_tokens } of questions) {
        const { choices } = await engine.chat.completions.create({ messages: [{ role: 'user', content }], temperature: 0, max_tokens });
        answers.push(choices[0].message.content);
      }
      return answers;
    },
    { url: model, questions },
  );
  assert.deepEqual(answers, goldens.map(({ text }) => text.replace(/<\|im_end\|>$/, '')));
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('a chat with the small model: its text, its figures, its timeline', NOT_SHORT, async () => {
  const page = await open(browser);
  await chooseUrl(page, model);
  await openPlan(page);
  await page.fill('#host-budget .value input', String(HOST_BUDGET));
  await page.press('#host-budget .value input', 'Enter');
  await planFor(page);
  await load(page);
  const answer = await ask(page, goldens[0].prompt, goldens[0].new_ids.length);
  assert.equal(`${answer}<|im_end|>`, goldens[0].text);
  assert.match(await figure(page, '#speed', 'Context'), /^\d+ of \d+$/);
  assert.match(await figure(page, '#speed', 'First token after'), /s$/);
  assert.notEqual(await figure(page, '#speed', 'Moved per token'), '0.000 GB');
  assert.match(await page.textContent('#badge'), /^bound by (disk|upload|compute)$/);
  await page.click('#open-activity');
  await screen(page, 'web-run');
  assert.deepEqual(page.errors, []);
  await page.close();
});

/** Runs in the page: presses Stop at once when the next answer is longer than `length`; a busy machine could be late by whole answers. */
function stopAfter(length) {
  const messages = document.querySelector('#messages');
  const n = messages.children.length;
  const observer = new MutationObserver(() => {
    const isAnswer = messages.children.length === n + 2;
    if (!isAnswer || messages.lastElementChild.message.content.length <= length) return;
    observer.disconnect();
    document.querySelector('#stop').click();
    globalThis.hasStopped = true;
  });
  observer.observe(messages, { subtree: true, childList: true, characterData: true });
}

/** Deletes a stored model by its button, and waits until it is gone. */
async function deleteStored(page, name) {
  await openModels(page);
  await page.click(`#stored button[aria-label="Delete ${name}"]`);
  const hasEnded = (name) => !document.querySelector('#stored').textContent.includes(name) || !document.querySelector('#run-error').hidden;
  await page.waitForFunction(hasEnded, name);
  assert.equal(await page.textContent('#run-error'), '');
}

test('load with progress, chat, stop, regenerate; a reload brings model, options and conversation back from what is stored', async () => {
  const page = await open(browser);
  const url = `${browser.server.address}/faulty/very-slow/tiny.gguf`;
  await chooseUrl(page, url);
  await planFor(page);
  assert.match(await page.textContent('#load'), /Download .* and load/);
  const steps = page.waitForFunction(() => /\(\d+ %\)/.test(document.querySelector('#progress-text').textContent));
  await load(page);
  await steps;
  assert.equal(await ask(page, HELLO, TINY_TOKENS), tinyAnswer);

  await limitAnswers(page, 400);
  await page.evaluate(stopAfter, 8);
  await send(page, 'Write a long story.');
  await page.waitForFunction(() => globalThis.hasStopped);
  await answered(page);
  const stopped = await lastText(page);
  await limitAnswers(page, 5);
  await page.click('#regenerate');
  await answered(page);
  const again = await lastText(page);
  assert.ok(again.length > 0 && stopped.startsWith(again), `${again} / ${stopped}`);

  browser.server.requests.length = 0;
  await page.reload();
  await loaded(page);
  assert.match(await page.textContent('#run-facts'), /stored in this browser/);
  assert.match(await page.textContent('#command'), /--max-memory gpu:0=40MiB/, 'the options are those of before');
  assert.equal(await lastText(page), again, 'what was said is there');
  const downloads = browser.server.requests.filter(({ path, method }) => path.endsWith('tiny.gguf') && method === 'GET');
  assert.deepEqual(downloads, [], 'nothing is downloaded a second time');

  page.on('dialog', (dialog) => dialog.accept());
  await deleteStored(page, 'tiny.gguf');
  assert.deepEqual(page.errors, []);
  await page.close();
});

test(`the package answers ${asked.length} of ${goldens.length} goldens token for token, streamed from disk, within its budget`, async () => {
  const page = await open(browser);
  const results = await page.evaluate(
    async ({ url, budget, hostBudget, items }) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      const engine = new Engine();
      const stages = new Set();
      await engine.load({ url, keep: true }, { device: 'gpu:0', max_memory: { 'gpu:0': budget, cpu: hostBudget }, ctx_size: 256, measure: false, onProgress: ({ stage }) => stages.add(stage) });
      const answers = [];
      for (const { prompt, new_ids } of items) {
        const messages = [{ role: 'user', content: prompt }];
        const body = { messages, temperature: 0, max_tokens: new_ids.length };
        const stream = await engine.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } });
        let text = '';
        let usage;
        for await (const chunk of stream) {
          text += chunk.choices[0]?.delta.content ?? '';
          usage = chunk.usage ?? usage;
        }
        answers.push({ text, tokens: usage.extra.tokens, usage });
      }
      return { answers, memory: await engine.memory(), stages: [...stages], disk: engine.loaded.plan.devices.find(({ device }) => device === 'disk').streamed_bytes };
    },
    { url: `${browser.server.address}/models/goldens.gguf`, budget: BUDGET, hostBudget: HOST_BUDGET, items: asked.map(({ prompt, new_ids }) => ({ prompt, new_ids: new_ids.slice(0, N_TOKENS) })) },
  );
  for (const [index, golden] of asked.entries()) {
    const { tokens, text } = results.answers[index];
    const expected = golden.new_ids.slice(0, N_TOKENS).filter((id) => id !== END_OF_TURN);
    assert.deepEqual(tokens.filter((id) => id !== END_OF_TURN), expected, golden.prompt);
    assert.ok(text.length > 0 && golden.text.startsWith(text), `${golden.prompt} ${text}`);
  }
  assert.deepEqual(results.stages, ['download', 'load']);
  assert.ok(results.disk > 20e6, `${results.disk} bytes stream from disk at every token`);
  const gpu = results.memory.devices.find(({ device }) => device === 'gpu:0');
  assert.ok(gpu.peak <= BUDGET, `peak ${gpu.peak}`);
  assert.ok(results.memory.wasm_bytes < 512 * 2 ** 20, `wasm memory ${results.memory.wasm_bytes}`);
  console.log(`# peak ${(gpu.peak / 2 ** 20).toFixed(1)} MiB of ${BUDGET / 2 ** 20} MiB, wasm ${(results.memory.wasm_bytes / 2 ** 20).toFixed(1)} MiB`);
  await page.close();
});

test('the ten lines of the README work as they stand', NOT_SHORT, async () => {
  const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
  const [, lines] = /```js\n([^]*?)```/.exec(readme);
  const script = lines.replace("from 'tierflow'", "from '/index.js'");
  const page = await browser.context.newPage();
  await page.route('**/readme.html', (route) => route.fulfill({ contentType: 'text/html', body: `<script type="module">${script}</script>` }));
  const answered = page.waitForEvent('console', { predicate: (message) => /Paris/.test(message.text()) });
  await page.goto(new URL('/readme.html', browser.address).href);
  assert.equal((await answered).text(), 'The capital of France is Paris.');
  await page.close();
});

test('a local file runs from where it lies, and nothing is stored', async () => {
  const page = await open(browser);
  await page.waitForFunction(() => document.querySelector('#storage-facts').textContent !== '');
  const before = await page.textContent('#storage-facts');
  await chooseFile(page, TINY);
  await planFor(page);
  assert.match(await page.textContent('#run-facts'), /nothing is copied/);
  await load(page);
  assert.equal(await ask(page, HELLO, TINY_TOKENS), tinyAnswer);
  assert.equal(await page.textContent('#storage-facts'), before);
  await page.click('#open-activity');
  const [trace] = await Promise.all([page.waitForEvent('download'), page.click('#save-perfetto')]);
  const { traceEvents } = JSON.parse(readFileSync(await trace.path()));
  assert.ok(traceEvents.length > 0);
  const [svg] = await Promise.all([page.waitForEvent('download'), page.click('#save-svg')]);
  assert.match(readFileSync(await svg.path(), 'utf8'), /^<svg [^]*<title>/);
  await page.close();
});

test('a load that is cancelled keeps what was downloaded, and goes on from there', async () => {
  const page = await open(browser);
  const slow = `${browser.server.address}/faulty/slow/cancelled.gguf`;
  await chooseUrl(page, slow);
  await planFor(page);
  await page.click('#load');
  await page.waitForFunction(() => /Downloading: ([2-9]|\d\d)\.\d MiB/.test(document.querySelector('#progress-text').textContent));
  await page.click('#cancel');
  await page.waitForFunction(() => document.querySelector('#run-said').textContent.startsWith('Cancelled'));
  await page.waitForFunction(() => document.querySelector('#stored').textContent.includes('unfinished'));
  assert.match(await page.textContent('#run-facts'), /of it stored; the download goes on from there/);
  browser.server.requests.length = 0;
  await page.click('#load');
  await page.waitForFunction(() => document.querySelector('#progress-text').textContent.startsWith('Downloading'));
  await page.click('#cancel');
  await page.waitForSelector('#load:not([hidden])');
  const resumed = browser.server.requests.find(({ range }) => /^bytes=[1-9]\d*-$/.test(range ?? ''));
  assert.ok(resumed, JSON.stringify(browser.server.requests));
  await page.close();
});

test('a tab that is closed in the middle of a download leaves what another tab goes on with', async () => {
  const first = await open(browser);
  const url = `${browser.server.address}/faulty/slow/closed.gguf`;
  await chooseUrl(first, url);
  await planFor(first);
  await first.click('#load');
  await first.waitForFunction(() => /Downloading: \d\d\.\d MiB/.test(document.querySelector('#progress-text').textContent));

  const second = await open(browser);
  await chooseUrl(second, url);
  await planFor(second);
  await second.click('#load');
  await second.waitForSelector('#run-error:not([hidden])');
  assert.match(await second.textContent('#run-error'), /another tab is downloading this model/);

  await first.close();
  await second.waitForFunction(async () => (await navigator.locks.query()).held.length === 0);
  await second.click('#load');
  await second.waitForFunction(() => document.querySelector('#progress-text').textContent.startsWith('Downloading'));
  await second.click('#cancel');
  await second.waitForSelector('#load:not([hidden])');
  const stored = await second.evaluate(async () => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    return (await new Engine().storage.list()).models;
  });
  assert.ok(stored.every(({ complete, size, done }) => (complete ? done === size : done < size)), JSON.stringify(stored));
  await second.close();
});

test('servers that misbehave are told apart, and leave nothing that is taken for a model', async () => {
  const page = await open(browser);
  const messageOf = async (name, place) => {
    await chooseUrl(page, `${browser.server.address}/faulty/${name}/broken.gguf`);
    await page.waitForFunction((selector) => !document.querySelector(selector).hidden, place);
    return page.textContent(place);
  };
  assert.match(await messageOf('missing', '#model-error'), /404, there is no such file/);
  assert.match(await messageOf('html', '#model-error'), /broken\.gguf/);
  assert.match(await messageOf('short-range', '#model-error'), /the server sends \d+ of \d+ bytes/);
  assert.match(await messageOf('wrong-range', '#model-error'), /the server was asked for bytes/);
  await picture(page, 'web-broken-server', '#model');

  await chooseUrl(page, `${browser.server.address}/faulty/drop-once/broken.gguf`);
  await planFor(page);
  await page.click('#load');
  await page.waitForSelector('#run-error:not([hidden])');
  assert.match(await page.textContent('#run-error'), /dropped after \d+ of 98362432 bytes; load again to go on/);
  await load(page);
  const stored = await page.evaluate(async () => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    return (await new Engine().storage.list()).models.filter(({ complete, url }) => complete && url.includes('faulty'));
  });
  assert.deepEqual(stored.map(({ size }) => size), [SIZE]);
  await page.close();
});

test('a download that ends early where no length was announced is refused, and not kept', async () => {
  const page = await open(browser);
  await chooseUrl(page, `${browser.server.address}/faulty/truncated/tiny-cut.gguf`);
  await planFor(page);
  await page.click('#load');
  await page.waitForSelector('#run-error:not([hidden])');
  assert.match(await page.textContent('#run-error'), /This file cannot be used\. tiny-cut\.gguf/);
  await page.waitForSelector('#load:enabled');
  assert.ok(!(await page.textContent('#stored')).includes('tiny-cut.gguf'));
  assert.match(await page.textContent('#run-facts'), /not stored yet/);
  await page.close();
});

test('two tabs answer from one stored model, and neither takes it from the other', async () => {
  const url = `${browser.server.address}/models/tiny-shared.gguf`;
  const tabs = [];
  for (let n = 0; n < 2; n += 1) {
    const page = await open(browser);
    await chooseUrl(page, url);
    await planFor(page);
    await load(page);
    tabs.push(page);
  }
  const [first, second] = tabs;
  assert.equal(await ask(first, HELLO, TINY_TOKENS), tinyAnswer);
  assert.equal(await ask(second, HELLO, TINY_TOKENS), tinyAnswer);
  await openModels(second);
  await second.click('#unload');
  second.on('dialog', (dialog) => dialog.accept());
  await second.click('#stored button[aria-label="Delete tiny-shared.gguf"]');
  await second.waitForSelector('#run-error:not([hidden])');
  assert.match(await second.textContent('#run-error'), /in use, here or in another tab/);
  await first.click('#regenerate');
  await answered(first);
  assert.equal(await first.isVisible('#chat-error'), false);
  await openModels(first);
  await first.click('#unload');
  await deleteStored(second, 'tiny-shared.gguf');
  await Promise.all(tabs.map((page) => page.close()));
});

test('a load that reads from a server ends when it is cancelled, and another can begin at once', async () => {
  const page = await open(browser);
  const { name, secs, stages } = await page.evaluate(
    async ({ url, budget }) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      const engine = new Engine();
      const stop = new AbortController();
      const stages = [];
      let begin = 0;
      const onProgress = ({ stage }) => {
        stages.push(stage);
        begin ||= performance.now();
        stop.abort();
      };
      const options = { device: 'gpu:0', max_memory: { 'gpu:0': budget }, ctx_size: 256, measure: false };
      const error = await engine.load(url, { ...options, signal: stop.signal, onProgress }).catch((thrown) => thrown);
      const secs = (performance.now() - begin) / 1000;
      await engine.plan(url, options);
      return { name: error.name, secs, stages };
    },
    { url: `${browser.server.address}/faulty/slow/read.gguf`, budget: 120 * 2 ** 20 },
  );
  assert.equal(name, 'AbortError');
  // All of it takes the server twelve seconds.
  assert.ok(secs < 6 && stages.length < 4, `${secs} s, ${stages.length} steps`);
  await page.close();
});

test('the engine itself ends a load whose progress function returns false, and can load again', async () => {
  const page = await open(browser);
  const { name, engine } = await page.evaluate(async (url) => {
    const wasm = await import(new URL('../wasm/tierflow.js', location.href).href);
    await wasm.default();
    const bytes = new Uint8Array(await (await fetch(url)).arrayBuffer());
    const model = new wasm.Model([{ name: 'tiny.gguf', size: bytes.length, read: (offset, into) => into.set(bytes.subarray(offset, offset + into.length)) }]);
    const options = JSON.stringify({ device: 'gpu:0' });
    const error = await model.load(options, [], () => false).catch((thrown) => thrown);
    return { name: error.name, engine: JSON.parse((await model.load(options, [], () => {})).plan()) };
  }, `${browser.server.address}/models/tiny.gguf`);
  assert.equal(name, 'InterruptedError');
  assert.ok(engine.plan.devices.length > 0);
  await page.close();
});

test('from a server without ranges a model is planned, downloaded and run', async () => {
  const page = await open(browser);
  await chooseUrl(page, `${browser.server.address}/faulty/no-ranges/tiny-whole.gguf`);
  await planFor(page);
  await load(page);
  assert.equal(await ask(page, HELLO, TINY_TOKENS), tinyAnswer);
  await page.close();
});

test('storage that is too small, or full already, is reported, and nothing is left of the try', async () => {
  const page = await open(browser);
  const session = await browser.context.newCDPSession(page);
  const origin = new URL(browser.address).origin;
  await chooseUrl(page, `${browser.server.address}/faulty/no-etag/full.gguf`);
  await planFor(page);
  const usage = await page.evaluate(async () => (await navigator.storage.estimate()).usage);
  for (const quotaSize of [usage + 5e6, 1]) {
    await session.send('Storage.overrideQuotaForOrigin', { origin, quotaSize });
    await page.click('#load');
    await page.waitForFunction(() => !document.querySelector('#run-error').hidden && !document.querySelector('#load').hidden);
    assert.match(await page.textContent('#run-error'), /full\.gguf: needs (94 MiB|more) of the browser's storage, which (has \d MiB left|takes no more); delete/);
    assert.ok(!(await page.textContent('#stored')).includes('full.gguf'));
  }
  await session.send('Storage.overrideQuotaForOrigin', { origin });
  await page.close();
});

test('when the GPU is lost the text stays, and the model runs again with the smaller budget that is offered', async () => {
  const [file, question] = NOT_SHORT.skip ? [TINY, HELLO] : [MODEL, goldens[0].prompt];
  const page = await open(browser);
  await chooseFile(page, file);
  await planFor(page);
  await load(page);
  const answer = await ask(page, question, TINY_TOKENS);
  const session = await browser.context.browser().newBrowserCDPSession();
  await session.send('Browser.crashGpuProcess');
  await send(page, 'And then?');
  await page.waitForSelector('#run-error button');
  assert.match(await page.textContent('#run-error'), /^The GPU was lost\. \w.*: the device was lost.*Load with a GPU budget of/);
  const said = await page.textContent('#messages');
  assert.ok(said.includes(answer) && said.includes('And then?'), `what was said stays: ${said}`);
  await picture(page, 'web-gpu-lost', '#chat');

  await page.click('#run-error button');
  await page.waitForFunction(() => !document.querySelector('#unload').hidden);
  const [, budget] = /^(\d+(?:\.\d)?) MiB$/.exec(await page.inputValue('#gpu-budget .value input'));
  assert.ok(Number(budget) * 2 ** 20 < BUDGET, budget);
  assert.equal(await page.isVisible('#run-error'), false);
  await page.click('#new-chat');
  assert.equal(await ask(page, question, TINY_TOKENS), answer);
  assert.deepEqual(page.errors, []);
  await page.close();
});
