// Rates of the processor in the browser with one thread and with more, in turns: `node tests/threads.mjs [--model FILE] [--threads N]...
// [--rounds N] [--tokens N] [--chromium FILE] [--wllama FOLDER]`. With the package `@wllama/wllama` in a folder, also its rates.

import { copyFileSync, mkdtempSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const web = dirname(dirname(fileURLToPath(import.meta.url)));
const { values } = parseArgs({
  options: {
    model: { type: 'string', default: process.env.TIERFLOW_SMOLLM2 ?? join(web, '../.cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf') },
    threads: { type: 'string', multiple: true, default: ['1', '2'] },
    rounds: { type: 'string', default: '5' },
    tokens: { type: 'string', default: '32' },
    chromium: { type: 'string', default: '/usr/bin/chromium' },
    wllama: { type: 'string' },
  },
});
process.env.TIERFLOW_WEB_MODEL = resolve(values.model);
process.env.TIERFLOW_WEB_CHROMIUM = values.chromium;
if (values.wllama) process.env.TIERFLOW_WEB_LARGE = served(values.wllama);
const { open, start } = await import('./support/browser.mjs');

/** A page with the model in it, which computes with so many threads. */
async function openPage(browser, threads) {
  const page = await open(browser);
  await page.evaluate(
    async ({ url, threads }) => {
      const { Engine, init } = await import(new URL('../index.js', location.href).href);
      await init({ threads });
      globalThis.engine = new Engine();
      await globalThis.engine.load({ url, keep: true }, { device: 'cpu', ctx_size: 1024 });
    },
    { url: `${browser.server.address}/models/model.gguf`, threads },
  );
  return page;
}

/** A folder with what a page needs of wllama. */
function served(wllama) {
  const folder = mkdtempSync(join(tmpdir(), 'wllama-'));
  for (const file of ['index.js', 'wasm/wllama.wasm']) copyFileSync(join(wllama, 'esm', file), join(folder, basename(file)));
  return folder;
}

/** A page without a policy of contents, with the model in wllama, which computes on the processor with so many threads. */
async function openRival(browser, threads) {
  const page = await browser.context.newPage();
  await page.goto(`${browser.server.address}/page/style.css`);
  await page.evaluate(
    async ({ address, threads }) => {
      const { Wllama } = await import(`${address}/large/index.js`);
      const wllama = new Wllama({ default: `${address}/large/wllama.wasm` }, { suppressNativeLog: true });
      await wllama.loadModelFromUrl(`${address}/models/model.gguf`, { n_threads: threads, n_ctx: 1024, n_gpu_layers: 0 });
      const create = ({ stream_options, ...body }) => wllama.createCompletion(body);
      globalThis.engine = { completions: { create } };
    },
    { address: browser.server.address, threads },
  );
  return page;
}

/** Tokens a second of one answer to a prompt that no other has begun with: of the prompt, and of the answer without its first token. */
function rates(page, round, max_tokens) {
  return page.evaluate(
    async ({ round, max_tokens }) => {
      const prompt = `${round} ${'The quick brown fox jumps over the lazy dog. '.repeat(20)}`;
      const begin = performance.now();
      const times = [];
      let usage;
      const body = { prompt, temperature: 0, max_tokens, stream: true, stream_options: { include_usage: true } };
      for await (const chunk of await globalThis.engine.completions.create(body)) {
        if (chunk.choices[0]?.text) times.push(performance.now());
        usage = chunk.usage ?? usage;
      }
      return { prompt: (usage.prompt_tokens / (times[0] - begin)) * 1000, decode: ((times.length - 1) / (times.at(-1) - times[0])) * 1000 };
    },
    { round, max_tokens },
  );
}

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const text = (list) => `${median(list).toFixed(1)} [${list.map((rate) => rate.toFixed(1)).join(' ')}]`;
const browser = await start({ isolated: true });
const pages = [];
const engines = [['tierflow', openPage], ...(values.wllama ? [['wllama', openRival]] : [])];
for (const [name, openWith] of engines) {
  for (const threads of values.threads) pages.push({ name, threads, page: await openWith(browser, Number(threads)), prompt: [], decode: [] });
}
for (let round = 0; round <= Number(values.rounds); round += 1) {
  for (const { page, prompt, decode } of pages) {
    const found = await rates(page, round, Number(values.tokens));
    // The first round warms up.
    if (round > 0) [prompt.push(found.prompt), decode.push(found.decode)];
  }
}
await browser.close();
for (const { name, threads, prompt, decode } of pages) console.log(`${name}, ${threads} threads: prompt ${text(prompt)} token/s, decode ${text(decode)} token/s`);
console.log(`load ${loadavg().map((load) => load.toFixed(1)).join(' ')}`);
