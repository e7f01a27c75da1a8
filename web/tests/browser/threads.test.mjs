// Threads: pages that may share memory compute with several, and say the same; others compute with one.

import assert from 'node:assert/strict';
import { after } from 'node:test';

import { blank, hasWorkers, open, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

const [ONE, SEVERAL] = ['/wasm/tierflow_bg.wasm', '/wasm/tierflow_threads_bg.wasm'];
/** What workers run first that are refused the memory, by how. */
const REFUSALS = {
  'workers are given no memory to share': `WebAssembly.Memory = class { constructor() { throw new RangeError('refused by the test'); } };`,
  'the memory to share is too small': `const { Memory } = WebAssembly; WebAssembly.Memory = function () { return new Memory({ initial: 1, maximum: 1, shared: true }); };`,
};
/** Such workers, and the scripts that they consist of. */
const worker = (index) => `/refused-${index}.js`;
const scripts = Object.fromEntries(Object.values(REFUSALS).flatMap((stub, index) => [
  [`/stub-${index}.js`, stub],
  [worker(index), `import './stub-${index}.js';\nimport './worker.js';\n`],
]));
let isolated;
let usual;

before(async () => {
  isolated = await start({ isolated: true, scripts });
  usual = await start();
});
after(async () => {
  await isolated.close();
  await usual.close();
});

/** Runs in a page: loads a model for the processor with so many threads, and yields what it says with the figures behind it. */
const SAY = `async ({ url, threads, max_tokens, content, worker }) => {
  const { Engine, init } = await import(new URL('../index.js', location.href).href);
  await init({ threads, ...(worker ? { worker } : {}) });
  globalThis.engine = new Engine();
  await engine.load(url, { device: 'cpu', ctx_size: 512 });
  const body = { messages: [{ role: 'user', content }], temperature: 0, max_tokens, logprobs: true, top_logprobs: 3 };
  const { choices } = await engine.chat.completions.create(body);
  return choices[0];
}`;

function saidIn(page, browser, name, options) {
  const all = { url: `${browser.server.address}/models/${name}`, content: 'word '.repeat(60), max_tokens: 8, ...options };
  return page.evaluate(`(${SAY})(${JSON.stringify(all)})`);
}

/** The kinds of wasm that pages have fetched since the last call, in their order. */
function fetched({ server }) {
  return server.requests.splice(0).map(({ path }) => path).filter((path) => [ONE, SEVERAL].includes(path));
}

for (const [name, content, max_tokens] of [
  ['tiny.gguf', 'word '.repeat(60), 24],
  ['small.gguf', `Name three colours. ${'Be brief. '.repeat(12)}`, 8],
]) {
  test(`${name} says the same with one thread, two and three`, async () => {
    const answers = [];
    for (const threads of [1, 2, 3]) {
      const page = await blank(isolated);
      fetched(isolated);
      answers.push(await saidIn(page, isolated, name, { threads, content, max_tokens }));
      assert.deepEqual(fetched(isolated), [threads === 1 ? ONE : SEVERAL], 'one wasm is fetched');
      assert.deepEqual(page.errors, []);
      await page.close();
    }
    assert.ok(answers[0].logprobs.content.length > 3, JSON.stringify(answers[0]));
    assert.deepEqual(answers[1], answers[0]);
    assert.deepEqual(answers[2], answers[0]);
  });
}

test('without isolation one thread computes, whatever is asked for', async () => {
  const page = await blank(usual);
  fetched(usual);
  const { message } = await saidIn(page, usual, 'tiny.gguf', { threads: 4 });
  assert.ok(message.content.length > 0);
  assert.deepEqual(fetched(usual), [ONE]);
  await hasWorkers(page, 1);
  await page.close();
});

test('where the wasm for threads is not to be had, one thread computes', async () => {
  const page = await blank(isolated);
  await page.route(`**${SEVERAL}`, (route) => route.fulfill({ status: 404 }));
  fetched(isolated);
  await saidIn(page, isolated, 'tiny.gguf', { threads: 2 });
  assert.deepEqual(fetched(isolated), [ONE]);
  await page.close();
});

for (const [index, why] of Object.keys(REFUSALS).entries()) {
  test(`where ${why}, one thread computes, and the console says so`, async () => {
    const page = await blank(isolated);
    const said = [];
    page.on('console', (message) => said.push(message.text()));
    fetched(isolated);
    const { message } = await saidIn(page, isolated, 'tiny.gguf', { threads: 2, worker: worker(index) });
    assert.ok(message.content.length > 0);
    assert.deepEqual(fetched(isolated), [SEVERAL, ONE]);
    assert.equal(said.filter((line) => line.includes('one thread computes')).length, 1, said.join(' | '));
    await hasWorkers(page, 1);
    const next = await page.evaluate(async (url) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      await new Engine().load(url, { device: 'cpu', ctx_size: 512 });
      return 'loaded';
    }, `${isolated.server.address}/models/tiny.gguf`);
    assert.equal(next, 'loaded');
    assert.deepEqual(fetched(isolated), [], 'the next engine knows');
    assert.deepEqual(page.errors, []);
    await page.close();
  });
}

test('threads end with their engine, which can be used again', async () => {
  const page = await blank(isolated);
  const said = await saidIn(page, isolated, 'tiny.gguf', { threads: 3 });
  await hasWorkers(page, 3);
  await page.evaluate(() => globalThis.engine.close());
  await hasWorkers(page, 0);
  assert.deepEqual(await saidIn(page, isolated, 'tiny.gguf', { threads: 3 }), said);
  await page.close();
});

test('a thread that fails ends the engine with an error, and the next answer has another', async () => {
  const page = await blank(isolated);
  await page.evaluate(() => {
    const { postMessage } = Worker.prototype;
    Worker.prototype.postMessage = function (data, ...rest) {
      // Without a stack, a part cannot run.
      if (data.help) data.help.stackEnd = 0;
      postMessage.call(this, data, ...rest);
    };
    globalThis.mend = () => (Worker.prototype.postMessage = postMessage);
  });
  const failed = await saidIn(page, isolated, 'small.gguf', { threads: 2, max_tokens: 64 }).then(() => null, (error) => error);
  assert.match(String(failed), /a thread has failed/);
  await hasWorkers(page, 0);
  await page.evaluate(() => globalThis.mend());
  const { message } = await saidIn(page, isolated, 'tiny.gguf', { threads: 2 });
  assert.ok(message.content.length > 0);
  await page.close();
});

for (const kind of [true, false]) {
  test(`what a page ${kind ? 'with' : 'without'} isolation keeps for later has one wasm`, async () => {
    const own = await start({ isolated: kind, serviceWorkers: 'allow' });
    try {
      const page = await open(own);
      await page.evaluate(async () => {
        while (!(await navigator.serviceWorker.getRegistration())?.active) await new Promise((resolve) => setTimeout(resolve, 50));
      });
      assert.deepEqual([...new Set(fetched(own))], [kind ? SEVERAL : ONE]);
    } finally {
      await own.close();
    }
  });
}
