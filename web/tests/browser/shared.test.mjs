// One engine for all tabs of an origin: several ask, one worker answers; another tab's takes over when that one goes.

import assert from 'node:assert/strict';
import { after } from 'node:test';

import { blank, hasWorkers, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

const PLAIN = 'plain.test';
/** A service worker that asks the engine of the tabs. */
const ASKER = `
import { Engine } from '/index.js';
const engine = new Engine({ shared: 'tabs' });
const answer = async ({ url, options, body }) => {
  await engine.load(url, options);
  return (await engine.chat.completions.create(body)).choices[0].message.content;
};
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('message', (event) => {
  const [port] = event.ports;
  event.waitUntil(answer(event.data).then((text) => port.postMessage(text), (error) => port.postMessage(error.name + ': ' + error.message)));
});
`;
const OPTIONS = { device: 'cpu', ctx_size: 512, measure: false };
const BODY = { messages: [{ role: 'user', content: 'Go on' }], temperature: 0, max_tokens: 12 };
let browser;
let tiny;
let expected;

before(async () => {
  browser = await start({ flags: [`--host-resolver-rules=MAP ${PLAIN} 127.0.0.1`], serviceWorkers: 'allow', scripts: { '/asker.js': ASKER } });
  tiny = `${browser.server.address}/models/tiny.gguf`;
  const page = await tab({ shared: undefined });
  expected = await ask(page);
  assert.ok(expected.length > 0);
  await page.close();
});
after(() => browser.close());

/** A tab whose engine, `globalThis.engine`, has loaded the model. */
async function tab({ url = tiny, shared = 'tabs', options = OPTIONS } = {}) {
  const page = await blank(browser);
  await load(page, { url, shared, options });
  return page;
}

function load(page, argument) {
  return page.evaluate(async ({ url, shared, options }) => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    globalThis.engine = new Engine(shared ? { shared } : {});
    await engine.load(url, options);
  }, argument);
}

const ask = (page, body = BODY) => page.evaluate(async (body) => (await engine.chat.completions.create(body)).choices[0].message.content, body);

/**
 * Begins an answer that goes no further than its first steps: the worker hears of none that was taken. `globalThis.held` becomes the
 * name of the error that ends it.
 */
function hold(page) {
  return page.evaluate(async (body) => {
    const { postMessage } = BroadcastChannel.prototype;
    BroadcastChannel.prototype.postMessage = function (data) {
      if (!data.taken) postMessage.call(this, data);
    };
    globalThis.letGo = () => (BroadcastChannel.prototype.postMessage = postMessage);
    const stream = await engine.chat.completions.create({ ...body, max_tokens: 300, stream: true });
    await new Promise((begun) => {
      globalThis.held = (async () => {
        for await (const { choices } of stream) if (choices[0].delta.content) begun();
      })().then(() => 'ended', ({ name }) => name);
    });
  }, BODY);
}

/** How often the model was asked for since the last call. */
function reads() {
  return browser.server.requests.splice(0).filter(({ path }) => path === '/models/tiny.gguf').length;
}

/** Workers of all pages. */
const nWorkers = (...pages) => pages.reduce((sum, page) => sum + page.workers().length, 0);

test('two tabs ask at once and both are answered by one worker, which has loaded the model once', async () => {
  const first = await tab();
  assert.ok(reads() > 0);
  const second = await tab();
  assert.equal(reads(), 0, 'what is loaded is there for the next tab');
  assert.deepEqual(await Promise.all([ask(first), ask(second), ask(second), ask(first)]), Array(4).fill(expected));
  await hasWorkers(first, 1);
  assert.equal(nWorkers(first, second), 1);
  assert.deepEqual(await second.evaluate(() => [engine.loaded.name, engine.loaded.plan.ctx_size]), ['tiny.gguf', 512]);
  assert.equal(await second.evaluate(async () => (await engine.memory()).devices.length > 0), true);
  assert.deepEqual([first.errors, second.errors], [[], []]);
});

test('a tab that asks the worker of another ends answers within a token, and gets its errors and figures', async () => {
  const first = await tab();
  const second = await tab();
  const found = await second.evaluate(async (body) => {
    const stop = new AbortController();
    const onProgress = ({ stage, done }) => stage === 'answer' && done === 3 && stop.abort();
    const error = await engine.chat.completions.create({ ...body, max_tokens: 400 }, { signal: stop.signal, onProgress }).catch((thrown) => thrown);
    let text = '';
    for await (const { choices } of await engine.chat.completions.create({ ...body, stream: true })) text += choices[0].delta.content ?? '';
    const { usage } = await engine.chat.completions.create(body);
    const refused = await engine.chat.completions.create({ ...body, temperature: 5000 }).catch((thrown) => thrown);
    const { AbortError, InvalidArgumentError } = await import(new URL('../index.js', location.href).href);
    return { n: error.usage?.completion_tokens, text, usage, refused: refused.option, areTyped: error instanceof AbortError && refused instanceof InvalidArgumentError };
  }, BODY);
  assert.ok(found.n >= 3 && found.n <= 4, `${found.n} tokens, where the signal came with the third`);
  assert.equal(found.text, expected);
  assert.equal(found.usage.completion_tokens, 12);
  assert.equal(found.refused, 'temperature');
  assert.ok(found.areTyped);
  assert.equal(nWorkers(second), 0);
  assert.equal(nWorkers(first), 1);
});

test('when the tab goes whose worker answers, another takes over: what has begun ends with an error, what waits is answered', async () => {
  const first = await tab();
  const [second, third] = [await tab(), await tab()];
  await hold(second);
  const waiting = [ask(second), ask(third)];
  reads();
  await first.close();
  assert.equal(await second.evaluate(() => globalThis.held), 'HostLostError');
  await second.evaluate(() => globalThis.letGo());
  assert.deepEqual(await Promise.all(waiting), [expected, expected]);
  assert.ok(reads() > 0, 'the model is loaded again');
  await hasWorkers(second, 1);
  assert.equal(nWorkers(second, third), 1);
  assert.equal(await ask(second), expected);
  assert.equal(reads(), 0);
});

test('an answer whose tab goes keeps nobody waiting', async () => {
  const first = await tab();
  const second = await tab();
  await hold(second);
  const waiting = ask(first);
  await second.close();
  assert.equal(await waiting, expected);
});

test('each tab is answered by the model that it has loaded, though another has loaded another one since', async () => {
  const first = await tab();
  const second = await tab({ options: { ...OPTIONS, ctx_size: 64 } });
  const long = { ...BODY, messages: [{ role: 'user', content: 'word '.repeat(100) }] };
  const outcome = (page) => page.evaluate((body) => engine.chat.completions.create(body).then(() => 'answered', ({ name }) => name), long);
  assert.deepEqual([await outcome(first), await outcome(second), await outcome(first)], ['answered', 'ContextFullError', 'answered']);
  assert.equal(await ask(first), expected);
  assert.equal(nWorkers(first, second), 1);
});

test('an engine that is closed leaves the worker to the others, and the last one takes it along', async () => {
  const first = await tab();
  const second = await tab();
  await first.evaluate(() => engine.close());
  reads();
  assert.equal(await ask(second), expected);
  assert.equal(reads(), 0, 'the same worker goes on');
  assert.equal(nWorkers(first), 1);
  await second.evaluate(() => engine.close());
  await hasWorkers(first, 0);
  const refused = await second.evaluate((body) => engine.chat.completions.create(body).catch(({ message }) => message), BODY);
  assert.match(refused, /no model is loaded/);
  await load(first, { url: tiny, shared: 'tabs', options: OPTIONS });
  assert.equal(await ask(first), expected);
});

test('an engine that is closed in the turn in which it asks leaves no lock and no worker', async () => {
  const page = await blank(browser);
  const name = await page.evaluate(async () => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    const engine = new Engine({ shared: 'short-lived' });
    const asked = engine.devices().then(() => 'answered', ({ name }) => name);
    engine.close();
    const isLeft = async () => {
      const { held, pending } = await navigator.locks.query();
      return [...held, ...pending].some(({ name }) => name.includes('short-lived'));
    };
    await new Promise((resolve) => setTimeout(resolve, 100));
    while (await isLeft()) await new Promise((resolve) => setTimeout(resolve, 50));
    return asked;
  });
  assert.equal(name, 'AbortError');
  assert.equal(nWorkers(page), 0);
});

test('a worker that fails is followed by another', async () => {
  const first = await tab();
  const second = await tab();
  await first.workers()[0].evaluate(() => setTimeout(() => { throw new Error('broken by the test'); }));
  await hasWorkers(first, 0);
  assert.deepEqual(await Promise.all([ask(first), ask(second)]), [expected, expected]);
  assert.equal(nWorkers(first, second), 1);
});

test('where the worker cannot be started, its tab says why', async () => {
  const page = await blank(browser);
  await page.route('**/wasm/*.wasm', (route) => route.fulfill({ status: 404 }));
  const refused = await load(page, { url: tiny, shared: 'tabs', options: OPTIONS }).then(() => '', String);
  assert.match(refused, /cannot load the engine from .*tierflow_bg\.wasm: the server answers 404/);
});

test('a service worker asks the engine of the tabs, and is told where there is none', async () => {
  const page = await tab();
  const told = (page) => page.evaluate(async (question) => {
    await navigator.serviceWorker.register('/asker.js', { type: 'module' });
    const { active } = await navigator.serviceWorker.ready;
    const { port1, port2 } = new MessageChannel();
    const answer = new Promise((resolve) => (port1.onmessage = ({ data }) => resolve(data)));
    active.postMessage(question, [port2]);
    return answer;
  }, { url: tiny, options: OPTIONS, body: BODY });
  assert.equal(await told(page), expected);
  assert.equal(nWorkers(page), 1);
  const other = await blank(browser);
  await page.close();
  assert.match(await told(other), /TierflowError: no page is open whose engine could answer/);
});

test('on plain http, where tabs cannot find each other, an engine has its own worker', async () => {
  const page = await blank({ context: browser.context, address: browser.server.address.replace('127.0.0.1', PLAIN) });
  await load(page, { url: `${browser.server.address.replace('127.0.0.1', PLAIN)}/models/tiny.gguf`, shared: 'tabs', options: OPTIONS });
  assert.equal(await ask(page), expected);
  const refused = await page.evaluate(async () => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    return [{ shared: '' }, { share: 'tabs' }].map((options) => {
      try {
        return new Engine(options);
      } catch (error) {
        return [error.name, error.option];
      }
    });
  });
  assert.deepEqual(refused, [['InvalidArgumentError', 'shared'], ['InvalidArgumentError', 'share']]);
});
