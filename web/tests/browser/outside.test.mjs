// The package outside of browsers, in Node and Deno: models are files of the machine.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { PROGRAM, TINY } from '../support/browser.mjs';
import { test } from '../support/limited.mjs';

const web = join(dirname(fileURLToPath(import.meta.url)), '../..');
const DENO = join(web, 'node_modules/.bin/deno');
const isThere = existsSync(DENO) && spawnSync(DENO, ['--version']).status === 0;
/** What runs a script, by its name; in Deno it may do no more than read. */
const PROGRAMS = {
  Node: { run: [process.execPath], options: {} },
  Deno: { run: [DENO, 'run', '--no-prompt', '--allow-read'], options: { skip: isThere ? false : 'there is no Deno for this machine' } },
};
const LIMIT_MS = 120_000;
const folder = mkdtempSync(join(tmpdir(), 'tierflow-outside-'));
after(() => rmSync(folder, { recursive: true, force: true }));

/** What a script with the package prints as JSON, run by `command`. */
function printed([command, ...args], script) {
  const file = join(folder, 'script.mjs');
  writeFileSync(file, `
import * as tierflow from ${JSON.stringify(pathToFileURL(join(web, 'dist/index.js')).href)};
const { Engine, checkWebGpu, init } = tierflow;
const tiny = new URL(${JSON.stringify(pathToFileURL(TINY).href)});
const body = { messages: [{ role: 'user', content: 'Hello' }], temperature: 0, max_tokens: 8 };
const engine = new Engine();
${script}
engine.close();
`);
  const { status, signal, stdout, stderr } = spawnSync(command, [...args, file], { encoding: 'utf8', timeout: LIMIT_MS });
  assert.equal(status, 0, `${signal ?? ''} ${stderr}`);
  return JSON.parse(stdout);
}

for (const [name, { run, options }] of Object.entries(PROGRAMS)) {
  test(`in ${name} the processor answers as the native program does, whole and streamed, and the program ends`, options, () => {
    const flags = ['--device', 'cpu', '--predict', '8', '--temp', '0', '--no-measure', '--quiet'];
    const { status, stdout, stderr } = spawnSync(PROGRAM, ['run', TINY, '--prompt', 'Hello', ...flags], { encoding: 'utf8' });
    assert.equal(status, 0, stderr);
    const found = printed(run, `
      const plan = await engine.plan(tiny, { device: 'cpu' });
      const { name } = await engine.load(tiny, { device: 'cpu', ctx_size: 512 });
      const whole = await engine.chat.completions.create(body);
      let streamed = '';
      for await (const { choices } of await engine.chat.completions.create({ ...body, stream: true })) streamed += choices[0].delta.content ?? '';
      console.log(JSON.stringify({ name, text: plan.text, said: whole.choices[0].message.content, streamed, n: whole.usage.completion_tokens }));
    `);
    assert.deepEqual([found.said, found.streamed], Array(2).fill(stdout.replace(/\n$/, '')));
    assert.equal(found.n, 8);
    assert.match(found.text, /cpu/);
    assert.match(found.name, /\.gguf$/);
  });

  test(`in ${name} an adapter is trained and answers, a signal ends an answer, and models of servers are refused`, options, () => {
    const found = printed(run, `
      const { adapter, steps } = await engine.train(tiny, [{ prompt: 'One', completion: ' two' }], { device: 'cpu', steps: 1, seq_len: 32 });
      await engine.load(tiny, { device: 'cpu', ctx_size: 512, adapter });
      const stop = new AbortController();
      const onProgress = ({ stage, done }) => stage === 'answer' && done === 3 && stop.abort();
      const error = await engine.chat.completions.create({ ...body, max_tokens: 400 }, { signal: stop.signal, onProgress }).catch((thrown) => thrown);
      const errorOf = (asked) => asked.then(() => null, ({ name, message }) => [name, message]);
      const refused = [await errorOf(engine.plan('http://127.0.0.1:9/m.gguf')), await errorOf(engine.plan(new URL('missing.gguf', tiny)))];
      console.log(JSON.stringify({ losses: steps.map(({ loss }) => loss), files: adapter.map(({ name }) => name), error: error.name, n: error.usage?.completion_tokens, refused }));
    `);
    assert.ok(found.losses.length === 1 && found.losses[0] > 0);
    assert.deepEqual(found.files, ['adapter_model.safetensors', 'adapter_config.json']);
    assert.equal(found.error, 'AbortError');
    assert.ok(found.n >= 3 && found.n <= 4, `${found.n} tokens, where the signal came with the third`);
    const [[server, why], [missing, where]] = found.refused;
    assert.equal(server, 'ServerError');
    assert.match(why, /^http:\/\/127\.0\.0\.1:9\/m\.gguf: .*file:\/\/\//);
    assert.equal(missing, 'InvalidFileError');
    assert.match(where, /^missing\.gguf: cannot be opened/);
  });
}

test('in Node several threads say the same as one, and end with their engine', () => {
  const [one, three] = [1, 3].map((threads) =>
    printed(PROGRAMS.Node.run, `
      let n = 0;
      process.on('worker', () => (n += 1));
      await init({ threads: ${threads} });
      await engine.load(tiny, { device: 'cpu', ctx_size: 512 });
      const { choices } = await engine.chat.completions.create({ ...body, messages: [{ role: 'user', content: 'word '.repeat(60) }], logprobs: true });
      console.log(JSON.stringify({ said: choices[0], threads: n }));
    `),
  );
  assert.ok(one.said.logprobs.content.length > 3);
  assert.deepEqual(three.said, one.said);
  assert.equal(three.threads - one.threads, 2);
});

test('in Deno the adapter computes, too, where there is one', PROGRAMS.Deno.options, () => {
  const found = printed(PROGRAMS.Deno.run, `
    const { ok } = await checkWebGpu();
    if (ok) await engine.load(tiny, { device: 'gpu:0', ctx_size: 512 });
    const said = ok ? (await engine.chat.completions.create(body)).usage.completion_tokens : null;
    console.log(JSON.stringify({ ok, said, devices: ok ? (await engine.memory()).devices.map(({ device }) => device) : [] }));
  `);
  if (found.ok) assert.deepEqual([found.said, found.devices[0]], [8, 'gpu:0']);
});
