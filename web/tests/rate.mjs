// Decode rate in the browser beside that of the native program on the same adapter, in turns: Chromium's own SwiftShader, with
// which both can compute. `node tests/rate.mjs [--model FILE] [--native FILE] [--chromium FILE] [--driver FILE] [--gpu MIB]
// [--host MIB] [--rounds N] [--tokens N] [--unchecked]`.
//
// --native    tierflow; otherwise ../target/release/tierflow
// --driver    the Vulkan driver's file for the native program; otherwise that of Chromium's SwiftShader
// --gpu       budget of the GPU in MiB; without it nothing streams
// --host      budget of the host in MiB; with both the rest streams from disk, in the browser from its storage
// --unchecked the browser leaves out the bounds checks that it else adds to every shader, and that the native program has not

import { spawnSync } from 'node:child_process';
import { loadavg } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const web = dirname(dirname(fileURLToPath(import.meta.url)));
const { values } = parseArgs({
  options: {
    model: { type: 'string', default: process.env.TIERFLOW_SMOLLM2 ?? join(web, '../.cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf') },
    native: { type: 'string', default: join(web, '../target/release/tierflow') },
    chromium: { type: 'string', default: '/usr/bin/chromium' },
    driver: { type: 'string', default: '/usr/lib/chromium/vk_swiftshader_icd.json' },
    gpu: { type: 'string' },
    host: { type: 'string' },
    rounds: { type: 'string', default: '5' },
    tokens: { type: 'string', default: '8' },
    unchecked: { type: 'boolean', default: false },
  },
});
const CTX_SIZE = 256;
const nTokens = Number(values.tokens);
const model = resolve(values.model);
/** Budgets as the package takes them. */
const budgets = Object.fromEntries([['gpu:0', values.gpu], ['cpu', values.host]].filter(([, mib]) => mib).map(([device, mib]) => [device, Number(mib) * 2 ** 20]));

process.env.TIERFLOW_WEB_MODEL = model;
process.env.TIERFLOW_WEB_CHROMIUM = values.chromium;
const { open, start } = await import('./support/browser.mjs');

/** Tokens a second of the native program, after a run that warms up. */
function native() {
  const memory = Object.entries(budgets).map(([device, size]) => `${device}=${size}`);
  const limits = memory.length > 0 ? ['--max-memory', memory.join()] : [];
  const task = ['bench', model, '--device', 'gpu:0', ...limits, '-c', String(CTX_SIZE), '-p', '0', '-n', values.tokens, '-r', '1', '--json'];
  const environment = { ...process.env, VK_DRIVER_FILES: values.driver, VK_ICD_FILENAMES: values.driver };
  const { status, stdout, stderr } = spawnSync(resolve(values.native), task, { env: environment, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${values.native} ${task.join(' ')}: ${stderr}`);
  return JSON.parse(stdout).rows[0].median_ts;
}

/** The page with the model in it; yields tokens a second of one answer, without the first token, and what the worker did. */
async function openPage(browser) {
  const page = await open(browser);
  await page.evaluate(
    async ({ url, max_memory, ctx_size }) => {
      const { Engine } = await import(new URL('../index.js', location.href).href);
      globalThis.engine = new Engine();
      await globalThis.engine.load({ url, keep: true }, { device: 'gpu:0', max_memory, ctx_size });
    },
    { url: `${browser.server.address}/models/model.gguf`, max_memory: budgets, ctx_size: CTX_SIZE },
  );
  return (maxTokens) =>
    page.evaluate(async (max_tokens) => {
      const { engine } = globalThis;
      const times = [];
      const messages = [{ role: 'user', content: 'Write a long story.' }];
      for await (const chunk of await engine.chat.completions.create({ messages, temperature: 0, max_tokens, stream: true })) {
        if (chunk.choices[0].delta.content) times.push(performance.now());
      }
      const { summary } = await engine.trace();
      return { rate: ((times.length - 1) / (times.at(-1) - times[0])) * 1000, summary };
    }, maxTokens);
}

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const browser = await start({ flags: values.unchecked ? ['--enable-dawn-features=disable_robustness'] : [] });
const answer = await openPage(browser);
const rates = { page: [], native: [] };
await answer(2);
for (let round = 0; round < Number(values.rounds); round += 1) {
  rates.native.push(native());
  rates.page.push((await answer(nTokens + 1)).rate);
  console.log(`round ${round + 1}: native ${rates.native.at(-1).toFixed(3)} t/s, page ${rates.page.at(-1).toFixed(3)} t/s, load ${loadavg()[0].toFixed(2)}`);
}
await browser.close();
const [page, program] = [median(rates.page), median(rates.native)];
console.log(`medians: native ${program.toFixed(3)} t/s, page ${page.toFixed(3)} t/s; page / native = ${(page / program).toFixed(2)}`);
