// The package as bundlers take it: packed as for npm, built with vite, webpack and esbuild as the README says, and asked in the
// browser; and its types as TypeScript reads them.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';

import { MODEL, TINY, open, start } from '../support/browser.mjs';
import { before, test } from '../support/limited.mjs';
import { serve } from '../support/server.mjs';

const web = join(dirname(fileURLToPath(import.meta.url)), '../..');
const tools = join(web, 'node_modules');
const readme = readFileSync(join(web, 'README.md'), 'utf8');
const folder = mkdtempSync(join(tmpdir(), 'tierflow-bundle-'));
const APP = `
import { Engine, checkWebGpu } from 'tierflow';
void checkWebGpu;
const engine = new Engine();
await engine.load('/models/tiny.gguf', { device: 'cpu' });
const { choices } = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Hello' }], temperature: 0, max_tokens: 6 });
document.title = 'answered: ' + choices[0].message.content;
`;
let browser;
/** What the package answers that no bundler has touched. */
let expected;

before(async () => {
  writeFileSync(join(folder, 'package.json'), '{"name": "app", "private": true, "type": "module"}');
  const [{ filename }] = JSON.parse(run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', folder], web));
  const installed = join(folder, 'node_modules/tierflow');
  mkdirSync(installed, { recursive: true });
  run('tar', ['-xzf', join(folder, filename), '-C', installed, '--strip-components=1']);
  writeFileSync(join(folder, 'app.js'), APP);
  writeFileSync(join(folder, 'index.html'), '<!doctype html><script type="module" src="./app.js"></script>');
  browser = await start();
  expected = await unbundled();
});
after(async () => {
  await browser.close();
  rmSync(folder, { recursive: true, force: true });
});

function run(command, args, cwd = folder) {
  return execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
}

async function unbundled() {
  const page = await open(browser);
  const answer = await page.evaluate(async (url) => {
    const { Engine } = await import(new URL('../index.js', location.href).href);
    const engine = new Engine();
    await engine.load(url, { device: 'cpu' });
    const { choices } = await engine.chat.completions.create({ messages: [{ role: 'user', content: 'Hello' }], temperature: 0, max_tokens: 6 });
    return choices[0].message.content;
  }, `${browser.server.address}/models/tiny.gguf`);
  await page.close();
  assert.ok(answer.length > 0);
  return answer;
}

/** What a built page answers, served by itself; where it is `isolated`, with threads. */
async function answerOf(built, isolated) {
  const server = await serve({ folder: built, model: MODEL, tiny: TINY, isolated });
  try {
    const page = await browser.context.newPage();
    const errors = [];
    page.on('pageerror', (error) => errors.push(String(error)));
    await page.goto(`${server.address}/`);
    while (!(await page.title()).startsWith('answered: ') && errors.length === 0) await page.waitForTimeout(50);
    assert.deepEqual(errors, []);
    return (await page.title()).slice('answered: '.length);
  } finally {
    server.close();
  }
}

const builds = {
  vite(out) {
    run(process.execPath, [join(tools, 'vite/bin/vite.js'), 'build', '--outDir', out, '--logLevel', 'error']);
  },
  webpack(out) {
    const config = `export default { mode: 'production', entry: './app.js', output: { path: ${JSON.stringify(out)}, filename: 'app.js' }, performance: false };`;
    writeFileSync(join(folder, 'webpack.config.mjs'), config);
    run(process.execPath, [join(tools, 'webpack-cli/bin/cli.js'), '--config', 'webpack.config.mjs', '--stats', 'errors-only']);
    cpSync(join(folder, 'index.html'), join(out, 'index.html'));
  },
  /** By the very lines of the README. */
  esbuild(out) {
    const [, lines] = /```sh\n(esbuild [^]*?)```/.exec(readme);
    run('sh', ['-euc', `PATH=${join(tools, '.bin')}:$PATH\n${lines.replaceAll('public', out)}`]);
    cpSync(join(folder, 'index.html'), join(out, 'index.html'));
  },
};

test('the package holds its licences and what it says of itself, and nothing of the page', () => {
  const holds = (name) => existsSync(join(folder, 'node_modules/tierflow', name));
  for (const name of ['README.md', 'MIGRATING.md', 'dist/LICENSE-MIT', 'dist/LICENSE-APACHE', 'dist/index.d.ts', 'dist/wasm/tierflow_bg.wasm', 'dist/wasm/tierflow_threads_bg.wasm']) assert.ok(holds(name), name);
  for (const name of ['dist/page', 'dist/sw.js', 'dist/index.html', 'tests', 'page']) assert.ok(!holds(name), name);
});

for (const [name, build] of Object.entries(builds)) {
  test(`built with ${name}, the package answers as it does by itself`, async () => {
    const out = join(folder, `with-${name}`);
    build(out);
    for (const isolated of [false, true]) assert.equal(await answerOf(out, isolated), expected);
  });
}

test('the ten lines of the README, and what types are for, pass TypeScript', () => {
  const [, lines] = /```js\n([^]*?)```/.exec(readme);
  writeFileSync(join(folder, 'lines.ts'), lines);
  writeFileSync(join(folder, 'more.ts'), `
import { AbortError, Engine, fromHub } from 'tierflow';
export async function ask(role: string, stream: boolean): Promise<number | undefined> {
  using engine = new Engine({ shared: 'tabs' });
  try {
    const answer = await engine.chat.completions.create({ messages: [{ role, content: [{ type: 'text', text: 'Hello' }] }], stream });
    if (Symbol.asyncIterator in answer) for await (const chunk of answer) console.log(chunk.choices[0]?.delta.content);
    else console.log(answer.choices[0]?.message.content);
  } catch (error) {
    if (error instanceof AbortError) return error.usage?.completion_tokens;
    throw error;
  }
  // @ts-expect-error what there is not is no option
  await engine.chat.completions.create({ messages: [], audio: 1 });
  const source = await fromHub('org/name', { quant: 'Q4_K_M' });
  await engine.load(source, { signal: AbortSignal.timeout(1000) });
  const { choices } = await engine.completions.create({ prompt: 'Once', presence_penalty: 1, n: 2, logprobs: 1 });
  console.log(choices[0]?.text, choices[0]?.logprobs?.tokens);
  return undefined;
}
`);
  writeFileSync(join(folder, 'ai.ts'), `
import { embed, streamText } from 'ai';
import { Engine } from 'tierflow';
import { embeddingModel, languageModel } from 'tierflow/ai';
const engine = new Engine();
export const { textStream } = streamText({ model: languageModel(engine), prompt: 'Hello' });
export const { embedding } = await embed({ model: embeddingModel(engine, 'vectors'), value: 'Hello' });
`);
  symlinkSync(join(tools, 'ai'), join(folder, 'node_modules/ai'));
  const tsc = (args) => run(process.execPath, [join(tools, 'typescript/bin/tsc'), '--noEmit', '--strict', '--target', 'es2022', '--module', 'esnext', '--moduleResolution', 'bundler', '--types', '', ...args]);
  tsc(['--lib', 'es2022,dom,dom.iterable', 'lines.ts']);
  tsc(['--lib', 'esnext,dom,dom.iterable', 'more.ts']);
  // Declarations of others are not checked.
  tsc(['--lib', 'esnext,dom,dom.iterable', '--skipLibCheck', 'ai.ts']);
});
