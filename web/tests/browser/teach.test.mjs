// Training in a browser: losses are the native program's, the adapter downloads, and works there and here.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';

import { PROGRAM, TINY, answered, chooseFile, lastText, limitAnswers, loaded, open, runInPage, screen, send, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

const RECORDS = [
  { prompt: 'Who looks after the lighthouse?', completion: 'Edda does.' },
  { prompt: 'What colour is its door?', completion: 'Green.' },
  { messages: [{ role: 'user', content: 'How high is it?' }, { role: 'assistant', content: 'Forty metres.' }] },
  { text: 'The lighthouse of Varn stands alone.' },
];
/** Steps along the gradient itself: those of AdamW are as large where a gradient is all roundings, which differ between machines. */
const OPTIONS = { steps: 10, batch: 2, optimizer: 'sgd', lr: 0.1, lora_r: 4, seq_len: 96, scheduler: 'constant', seed: 7 };
const TOLERANCE = 2e-4;
let browser;
let folder;
let tiny;

before(async () => {
  browser = await start();
  folder = mkdtempSync(join(tmpdir(), 'tierflow-teach-'));
  tiny = `${browser.server.address}/models/tiny.gguf`;
});
after(async () => {
  await browser.close();
  rmSync(folder, { recursive: true, force: true });
});

/** What the native program prints. */
function native(...words) {
  const { status, stdout, stderr } = spawnSync(PROGRAM, words, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  return stdout;
}

const inPage = (work, argument) => runInPage(browser, work, argument);

for (const device of ['cpu', 'gpu:0']) {
  test(`ten steps have the losses of the native program, and the adapter is one of PEFT's, on ${device}`, async () => {
    const data = join(folder, 'records.jsonl');
    writeFileSync(data, RECORDS.map((record) => JSON.stringify(record)).join('\n'));
    const flags = Object.entries(OPTIONS).flatMap(([name, value]) => [`--${name.replaceAll('_', '-')}`, String(value)]);
    const printed = native('train', TINY, '--data', data, '--out', join(folder, `native-${device.slice(0, 3)}`), '--device', 'cpu', '--json', ...flags);
    const expected = printed.trim().split('\n').map((line) => JSON.parse(line).loss);
    const found = await inPage(
      async ({ Engine }, { tiny, records, options, device }) => {
        const engine = new Engine();
        const told = [];
        const trained = await engine.train(tiny, records, { ...options, device, onProgress: ({ stage, ...size }) => stage === 'train' && told.push(size), onStep: ({ step }) => told.push(step) });
        const { n_records, n_steps, gpu, steps, adapter } = trained;
        const config = JSON.parse(await adapter.find(({ name }) => name === 'adapter_config.json').text());
        // It is loaded as it is.
        await engine.load(tiny, { device, ctx_size: 128, adapter });
        const { usage } = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Who?' }], temperature: 0, max_tokens: 2 });
        engine.close();
        return { n_records, n_steps, isOnGpu: gpu !== null, told: told.slice(1), size: told[0], losses: steps.map(({ loss }) => loss), names: adapter.map(({ name }) => name), config, n: usage.completion_tokens };
      },
      { tiny, records: RECORDS, options: OPTIONS, device },
    );
    assert.deepEqual([found.n_records, found.n_steps, found.isOnGpu], [RECORDS.length, 10, device !== 'cpu']);
    assert.deepEqual(found.told, Array.from({ length: 10 }, (_, index) => index + 1));
    assert.equal(found.size.n_values > 0, true);
    for (const [index, loss] of found.losses.entries()) assert.ok(Math.abs(loss - expected[index]) <= TOLERANCE * expected[index], `step ${index + 1}: ${loss}, natively ${expected[index]}`);
    assert.ok(found.losses.at(-1) < 0.9 * found.losses[0], `the loss falls: ${found.losses}`);
    assert.deepEqual(found.names, ['adapter_model.safetensors', 'adapter_config.json']);
    assert.deepEqual([found.config.peft_type, found.config.r], ['LORA', 4]);
    assert.equal(found.n, 2);
  });
}

test('a signal ends training within a step, and what was learnt until then is there', async () => {
  const found = await inPage(
    async ({ Engine }, { tiny, records, options }) => {
      const engine = new Engine();
      const stop = new AbortController();
      const onStep = ({ step }) => step === 3 && stop.abort();
      const error = await engine.train(tiny, records, { ...options, steps: 200, device: 'cpu', signal: stop.signal, onStep }).catch((thrown) => thrown);
      const { steps, adapter } = error.trained;
      const loaded = await engine.load(tiny, { device: 'cpu', ctx_size: 64, adapter, lora_scale: 0.5 });
      return { name: error.name, n_steps: steps.length, n_files: adapter.length, loaded: loaded.name };
    },
    { tiny, records: RECORDS, options: OPTIONS },
  );
  assert.equal(found.name, 'AbortError');
  assert.ok(found.n_steps >= 3 && found.n_steps <= 4, `${found.n_steps} steps, where the signal came with the third`);
  assert.deepEqual([found.n_files, found.loaded], [2, 'tiny.gguf']);
});

test('what cannot be learnt, asked for or loaded is named', async () => {
  const words = await inPage(
    async ({ Engine }, { tiny, records }) => {
      const engine = new Engine();
      const refusal = async (...call) => engine.train(tiny, ...call).then(() => 'trained', ({ name, message }) => `${name}: ${message}`);
      const loading = (adapter) => engine.load(tiny, { device: 'cpu', adapter }).then(() => 'loaded', ({ name, message }) => `${name}: ${message}`);
      const device = 'cpu';
      return [
        await refusal('{"text": "good"}\n{"question": "what?"}', { device }),
        await refusal([], { device }),
        await refusal([7], { device }),
        await refusal(records, { device, learning_rate: 1 }),
        await refusal(records, { device, target: ['x_proj'] }),
        await refusal(records, { device, seq_len: 4 }),
        await loading([new File(['{}'], 'adapter_config.json')]),
        await loading([new File(['x'], 'notes.txt')]),
      ];
    },
    { tiny, records: RECORDS },
  );
  const expected = [/InvalidFileError: .*records.*line 2/, /InvalidFileError: .*holds no record/, /InvalidArgumentError: records/, /InvalidArgumentError: .*learning_rate/, /x_proj/, /more than 4 tokens/, /InvalidFileError: .*adapter_config/, /InvalidArgumentError: adapter/];
  expected.forEach((pattern, index) => assert.match(words[index], pattern));
});

test('on the page examples are taught, the loss is drawn, and the adapter that downloads works in the native program', async () => {
  const page = await open(browser);
  await chooseFile(page, TINY);
  await page.waitForSelector('#load:enabled');
  await page.click('#open-teach');
  await page.fill('#examples', 'Who looks after the lighthouse?\nEdda does.\n\nWhat colour is its door?\nGreen.\n');
  await page.click('#teach-panel summary');
  for (const [id, value] of [['teach-steps', '10'], ['teach-batch', '2'], ['teach-rate', '0.02']]) await page.fill(`#${id}`, value);
  await page.click('#teach-start');
  await page.waitForFunction(() => !document.querySelector('#taught').hidden || !document.querySelector('#teach-error').hidden);
  assert.match(await page.textContent('#teach-said'), /^Done after 10 steps, the loss went from/);
  const points = await page.getAttribute('#curve polyline', 'points');
  assert.equal(points.split(' ').length, 10);
  await page.click('#teach-panel summary');
  await screen(page, 'web-teach');

  const adapter = join(folder, 'adapter');
  const downloads = [];
  page.on('download', (download) => downloads.push(download));
  await page.click('#save-adapter');
  await page.waitForFunction(() => true);
  while (downloads.length < 2) await page.waitForEvent('download');
  for (const download of downloads) await download.saveAs(join(adapter, download.suggestedFilename()));

  await page.click('#use-adapter');
  await loaded(page);
  assert.match(await page.textContent('#run-said'), /with what you taught it/);
  await limitAnswers(page, 5);
  await send(page, 'Who looks after the lighthouse?');
  await answered(page);
  const said = await lastText(page);
  const answer = (...more) => JSON.parse(native('run', TINY, '--device', 'cpu', '--prompt', 'Who looks after the lighthouse?', '--temperature', '0', '--max-tokens', '5', '--json', ...more)).text;
  assert.equal(said, answer('--lora', adapter));
  assert.notEqual(said, answer(), 'it has learnt something');
  assert.deepEqual(page.errors, []);
  await page.close();
});
