// The page in Firefox, whose stable releases on Linux have no WebGPU: the processor computes. Chat, stop, reload, and all of it without a network.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { after } from 'node:test';

import { MODEL, PROGRAM, TINY, answered, ask, askWithoutNetwork, chooseUrl, lastText, limitAnswers, load, loaded, open, send } from '../support/browser.mjs';
import { start } from '../support/firefox.mjs';
import { before, test } from '../support/limited.mjs';

const FIREFOX = process.env.TIERFLOW_WEB_FIREFOX;
const IF_THERE = { skip: FIREFOX ? false : 'there is no Firefox' };

let browser;

before(async () => {
  if (FIREFOX) browser = await start({ executablePath: FIREFOX, model: MODEL, tiny: TINY });
});
after(() => browser?.close());

async function withModel() {
  const page = await open(browser);
  await chooseUrl(page, `${browser.server.address}/models/tiny.gguf`);
  await page.waitForSelector('#load:enabled');
  await load(page);
  return page;
}

test('in Firefox the page says what is missing, and the processor answers as the native program does', IF_THERE, async () => {
  const page = await withModel();
  assert.match(await page.textContent('#webgpu'), /WebGPU/);
  const flags = ['--device', 'cpu', '--predict', '8', '--temp', '0', '--no-measure', '--quiet'];
  const { status, stdout, stderr } = spawnSync(PROGRAM, ['run', TINY, '--prompt', 'Hello', ...flags], { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  assert.equal(await ask(page, 'Hello', 8), stdout.replace(/\n$/, ''));
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('in Firefox an answer stops when it is told to, and the conversation is there again after a reload', IF_THERE, async () => {
  const page = await withModel();
  await limitAnswers(page, 4000);
  await send(page, 'Hello');
  await page.waitForFunction(() => document.querySelector('#messages .assistant')?.message.content.length > 8);
  await page.click('#stop');
  await answered(page);
  const said = await lastText(page);
  assert.ok(said.length > 8);
  await page.reload();
  await loaded(page);
  assert.equal(await lastText(page), said);
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('in Firefox two tabs share one engine, and the second takes over when the first is closed', IF_THERE, async () => {
  const url = `${browser.server.address}/models/tiny.gguf`;
  const nReads = () => browser.server.requests.splice(0).filter(({ path }) => path === '/models/tiny.gguf').length;
  const ask = (page) => page.evaluate(async (url) => {
    if (!globalThis.engine) {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      globalThis.engine = new Engine({ shared: 'tabs' });
      await engine.load(url, { device: 'cpu', ctx_size: 512, measure: false });
    }
    const body = { messages: [{ role: 'user', content: 'Go on' }], temperature: 0, max_tokens: 12 };
    return (await engine.chat.completions.create(body)).choices[0].message.content;
  }, url);
  const [first, second] = [await open(browser), await open(browser)];
  nReads();
  const said = await ask(first);
  assert.ok(said.length > 0 && nReads() > 0);
  assert.deepEqual(await Promise.all([ask(second), ask(first)]), [said, said]);
  assert.equal(nReads(), 0, 'one worker has loaded the model');
  await first.close();
  assert.equal(await ask(second), said);
  assert.ok(nReads() > 0);
  assert.deepEqual(second.errors, []);
  await second.close();
});

test('in Firefox the page opens again without a network, and answers with the model that it kept', IF_THERE, async () => {
  const page = await withModel();
  await askWithoutNetwork(page, browser.server);
  assert.deepEqual(page.errors, []);
  await page.close();
});

test('in Firefox several threads say the same as one, with a model that is kept', IF_THERE, async () => {
  const own = await start({ executablePath: FIREFOX, model: MODEL, tiny: TINY, isolated: true });
  try {
    const page = await open(own);
    const said = [];
    for (const threads of [1, 2]) {
      const choice = await page.evaluate(
        async ({ url, threads }) => {
          const { Engine, init } = await import(new URL('../index.js', location.href).href);
          await init({ threads });
          const engine = new Engine();
          await engine.load({ url, keep: true }, { device: 'cpu', ctx_size: 512 });
          const messages = [{ role: 'user', content: 'word '.repeat(60) }];
          const { choices } = await engine.chat.completions.create({ messages, temperature: 0, max_tokens: 12, logprobs: true });
          engine.close();
          return choices[0];
        },
        { url: `${own.server.address}/models/tiny.gguf`, threads },
      );
      said.push(choice);
    }
    assert.ok(own.server.requests.some(({ path }) => path === '/wasm/tierflow_threads_bg.wasm'));
    assert.ok(said[0].logprobs.content.length > 3, JSON.stringify(said[0]));
    assert.deepEqual(said[1], said[0]);
    assert.deepEqual(page.errors, []);
    await page.close();
  } finally {
    await own.close();
  }
});
