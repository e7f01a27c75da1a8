// Measuring in the browser: once for each machine, kept for later visits, off by option; no measurement that fails stops a load.

import assert from 'node:assert/strict';
import { after } from 'node:test';

import { chooseUrl, figure, open, openPlan, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';

let browser;
let tiny;

before(async () => {
  browser = await start();
  tiny = `${browser.server.address}/models/tiny.gguf`;
});
after(() => browser.close());

/**
 * A new visit: what `options` come to in a plan, and what is told meanwhile. Before that, what is stored of this machine is
 * changed as `change` says: `forget`, or a text that stands for another one in it; `half` cuts it short.
 */
async function visit(options, change = {}) {
  const page = await open(browser);
  const found = await page.evaluate(
    async ({ tiny, options, forget, half, from, to }) => {
      const root = await navigator.storage.getDirectory();
      const file = 'tierflow-rates.json';
      if (forget) await root.removeEntry(file).catch(() => {});
      const stored = async () => (await (await root.getFileHandle(file)).getFile()).text();
      if (half || from) {
        const text = await stored();
        const writable = await (await root.getFileHandle(file)).createWritable();
        await writable.write(half ? text.slice(0, text.length / 2) : text.replace(from, to));
        await writable.close();
        if (from && !text.includes(from)) throw new Error(`${text} has no ${from}`);
      }
      const { Engine } = await import(new URL('../index.js', location.href).href);
      const engine = new Engine();
      const stages = [];
      const onProgress = ({ stage }) => stages.push(stage);
      const { forecast, command } = await engine.plan(tiny, { ctx_size: 128, ...options, onProgress });
      const devices = Object.fromEntries((await engine.devices()).map((device) => [device.device, device]));
      return { stages, rates: forecast.decode.rates, command, devices, stored: await stored().catch(() => null) };
    },
    { tiny, options, ...change },
  );
  assert.deepEqual(page.errors, []);
  await page.close();
  return found;
}

for (const device of ['cpu', 'gpu:0']) {
  test(`the first plan measures ${device}, the next visit does not, and both rest on what was measured`, async () => {
    const first = await visit({ device }, { forget: true });
    // Those of the storage are never measured: where a plan reads from it, it rests on typical ones in part.
    const origin = device === 'cpu' ? 'measured' : 'partly_assumed';
    assert.deepEqual([first.stages, first.rates], [['measure'], origin]);
    const { rates } = first.devices[device];
    assert.ok(rates.measured_at > 0 && !('origin' in rates), JSON.stringify(rates));
    const figures = device === 'cpu' ? ['host_copy', 'dispatch_secs'] : ['upload_written', 'readback', 'dispatch_secs', 'submit_secs', 'round_trip_secs', 'shader_compile_secs'];
    const values = [...figures.map((name) => rates[name]), ...Object.values(rates.matvec), ...Object.values(rates.matmul)];
    assert.ok(values.every((value) => Number.isFinite(value) && value > 0), JSON.stringify(rates));
    assert.ok(device === 'gpu:0' || 'Q8_0' in rates.matvec, 'the model’s own dtype');
    const second = await visit({ device });
    assert.deepEqual([second.stages, second.rates, second.devices[device].rates], [[], origin, rates]);
  });
}

test('without measuring, a plan rests on typical rates, and nothing is kept', async () => {
  const found = await visit({ device: 'cpu', measure: false }, { forget: true });
  assert.deepEqual([found.stages, found.rates, found.stored], [[], 'assumed', null]);
  assert.match(found.command, / --no-measure$/);
});

test('an entry that is cut short, or of another browser, version or format, is measured anew', async () => {
  await visit({ device: 'cpu' }, { forget: true });
  const others = [{ half: true }, { from: 'Mozilla', to: 'Godzilla' }, { from: '"machine":"', to: '"machine":"0' }, { from: '\\"version\\": ', to: '\\"version\\": 9' }];
  for (const change of others) {
    const found = await visit({ device: 'cpu' }, change);
    assert.deepEqual([found.stages, found.rates], [['measure'], 'measured'], JSON.stringify(change));
  }
});

test('the first, second and fourth answer correct what was measured, and the next visit knows it', async () => {
  await visit({ device: 'cpu' }, { forget: true });
  const page = await open(browser);
  const counts = await page.evaluate(async (tiny) => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    const engine = new Engine();
    await engine.load(tiny, { device: 'cpu', ctx_size: 256 });
    const counts = [];
    for (let n = 1; n <= 4; n += 1) {
      // No token ends such an answer.
      await engine.chat.completions.create({ messages: [{ role: 'user', content: `Number ${n}` }], regex: '[a-z]{40}', max_tokens: 16 });
      const { rates } = JSON.parse(await (await (await (await navigator.storage.getDirectory()).getFileHandle('tierflow-rates.json')).getFile()).text());
      const corrections = Object.values(JSON.parse(rates).rates).flatMap((device) => Object.entries(device.corrections ?? {}));
      counts.push(Object.fromEntries(corrections.map(([aspect, samples]) => [aspect.split('.')[0], samples.length])));
    }
    return counts;
  }, tiny);
  assert.deepEqual(page.errors, []);
  await page.close();
  assert.deepEqual(counts.map(({ decode }) => decode), [1, 2, 2, 3], JSON.stringify(counts));
  const { stages, devices } = await visit({ device: 'cpu' });
  assert.deepEqual(stages, []);
  assert.ok(Object.keys(devices.cpu.rates.corrections).some((aspect) => aspect.startsWith('decode.')), JSON.stringify(devices.cpu.rates));
});

test('a prompt is read where rates say that many tokens take less time than one', async () => {
  await visit({ device: 'cpu' }, { forget: true });
  const page = await open(browser);
  const { n, prefill, decode } = await page.evaluate(async (tiny) => {
    const handle = await (await navigator.storage.getDirectory()).getFileHandle('tierflow-rates.json');
    const entry = JSON.parse(await (await handle.getFile()).text());
    const known = JSON.parse(entry.rates);
    for (const { matvec, matmul } of Object.values(known.rates)) {
      for (const dtype of Object.keys(matvec)) [matvec[dtype], matmul[dtype]] = [1, 1e18];
    }
    const writable = await handle.createWritable();
    await writable.write(JSON.stringify({ ...entry, rates: JSON.stringify(known) }));
    await writable.close();
    const { Engine } = await import(new URL('../index.js', location.href).href);
    const engine = new Engine();
    const options = { device: 'cpu', ctx_size: 512, ubatch_size: 16 };
    const { forecast } = await engine.plan(tiny, options);
    await engine.load(tiny, options);
    const { usage } = await engine.completions.create({ prompt: 'word '.repeat(40), max_tokens: 1 });
    return { n: usage.prompt_tokens, prefill: forecast.prefill.secs, decode: forecast.decode.secs };
  }, tiny);
  assert.deepEqual(page.errors, []);
  assert.ok(n > 40 && prefill < decode, `${n} tokens, ${prefill} s and ${decode} s`);
  await page.close();
});

test('devices are measured anew where that is asked for, in every dtype', async () => {
  const alone = await start({ webgpu: false });
  const page = await open(alone);
  const { before, after } = await page.evaluate(async (tiny) => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    const engine = new Engine();
    await engine.plan(tiny, { ctx_size: 128 });
    const cpu = (devices) => devices.find(({ device }) => device === 'cpu').rates;
    return { before: cpu(await engine.devices()), after: cpu(await engine.devices({ measure: true })) };
  }, `${alone.server.address}/models/tiny.gguf`);
  assert.deepEqual(page.errors, []);
  await alone.close();
  assert.ok(after.measured_at >= before.measured_at && 'Q3_K' in after.matvec, JSON.stringify(after));
});

test('an adapter that cannot be measured is loaded with typical rates, and the console says so', async () => {
  const page = await open(browser);
  const warnings = [];
  page.on('console', (message) => message.type() === 'warning' && warnings.push(message.text()));
  // A worker in which an adapter is opened for whoever asks third: twice it was to be measured.
  const broken = `
    let nAsked = 0;
    const opens = GPUAdapter.prototype.requestDevice;
    GPUAdapter.prototype.requestDevice = function (...rest) {
      nAsked += 1;
      return nAsked < 3 ? Promise.reject(new DOMException('not now', 'OperationError')) : opens.apply(this, rest);
    };`;
  await page.route('**/worker.js', async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, body: (await response.text()) + broken });
  });
  const found = await page.evaluate(async (tiny) => {
    await (await navigator.storage.getDirectory()).removeEntry('tierflow-rates.json').catch(() => {});
    const { Engine } = await import(new URL('../index.js', location.href).href);
    const engine = new Engine();
    const { forecast } = await engine.plan(tiny, { device: 'cpu', measure: false, ctx_size: 128 });
    await engine.load(tiny, { device: 'gpu:0', ctx_size: 128 });
    const { usage } = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Go on' }], max_tokens: 2 });
    const gpu = (await engine.devices()).find(({ device }) => device === 'gpu:0');
    return { n: usage.completion_tokens, origin: gpu.rates.origin, rates: forecast.decode.rates };
  }, tiny);
  assert.deepEqual(found, { n: 2, origin: 'assumed', rates: 'assumed' });
  assert.ok(warnings.some((text) => /^tierflow: .*were not measured: .*not now/.test(text)), warnings.join('\n'));
  await page.close();
});

test('the page says that it measures, and its plan then rests on measured rates', async () => {
  const page = await open(browser);
  await page.evaluate(async () => {
    await (await navigator.storage.getDirectory()).removeEntry('tierflow-rates.json').catch(() => {});
    globalThis.said = [];
    const said = document.querySelector('#model-said');
    new MutationObserver(() => globalThis.said.push(said.textContent)).observe(said, { childList: true });
  });
  await chooseUrl(page, tiny);
  await openPlan(page);
  assert.ok((await page.evaluate(() => globalThis.said)).includes('Measuring this machine…'));
  assert.match(await figure(page, '#rates', 'Decode'), /t\/s$/);
  assert.doesNotMatch(await page.textContent('#hints'), /not measured on this machine/);
  assert.deepEqual(page.errors, []);
  await page.close();
});
