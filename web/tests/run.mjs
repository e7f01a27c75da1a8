// All tests of the browser part: `node tests/run.mjs [--address URL] [--model FILE] [--tiny FILE] [--experts FILE] [--program FILE]
// [--chromium FILE] [--firefox FILE] [--unit] [--short] [--only TEXT]... [--long] [--large FOLDER] [--pictures]`.
//
// --address   where `web/dist` is served with the model at /models/; without it, it is served here
// --model     SmolLM2-135M-Instruct.Q4_1.gguf; otherwise TIERFLOW_SMOLLM2, or the repository's cache
// --tiny      a tiny model; otherwise the one that `cargo xtask make-model target/web-tests/tiny.gguf --gguf --dtype q8_0` writes
// --experts   a small mixture of experts; otherwise the one of `cargo xtask make-model target/web-tests/experts.gguf --preset moe --gguf --dtype q8_0 --seed 5`
// --program   the native program; otherwise the one that `cargo build --release` leaves
// --chromium  the browser; otherwise /usr/bin/chromium
// --firefox   the other one; otherwise /usr/bin/firefox-esr, and without it its tests are left out
// --unit      only the tests that need no browser
// --short     leaves out most of what the small model says, of which a software adapter computes about a token in a second
// --only      only the files whose path holds the text, such as browser/run, or one of the texts
// --long      compares answers to their ends, which takes a software adapter many minutes
// --large     instead of all others, those that stream a model of gigabytes, from the folder of a safetensors model
// --pictures  writes screenshots of plan, run and errors to docs/pictures

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const here = dirname(fileURLToPath(import.meta.url));
const web = dirname(here);

const { values } = parseArgs({
  options: {
    address: { type: 'string' },
    model: { type: 'string' },
    tiny: { type: 'string', default: join(web, '../target/web-tests/tiny.gguf') },
    experts: { type: 'string', default: join(web, '../target/web-tests/experts.gguf') },
    program: { type: 'string', default: join(web, '../target/release/tierflow') },
    chromium: { type: 'string', default: '/usr/bin/chromium' },
    firefox: { type: 'string', default: '/usr/bin/firefox-esr' },
    unit: { type: 'boolean', default: false },
    short: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true, default: [] },
    large: { type: 'string' },
    long: { type: 'boolean', default: false },
    pictures: { type: 'boolean', default: false },
  },
});

const model = resolve(values.model ?? process.env.TIERFLOW_SMOLLM2 ?? join(web, '../.cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'));
if (!values.unit) {
  need(values.chromium, 'on Debian: apt-get install chromium; or name another with --chromium');
  need(model, 'fetch it with `cargo xtask fetch-model`, or name it with --model');
  need(values.tiny, 'write it with `cargo xtask make-model target/web-tests/tiny.gguf --gguf --dtype q8_0`');
  need(values.experts, 'write it with `cargo xtask make-model target/web-tests/experts.gguf --preset moe --gguf --dtype q8_0 --seed 5`');
  need(values.program, 'build it with `cargo build --release`');
  const { devDependencies } = JSON.parse(readFileSync(join(web, 'package.json'), 'utf8'));
  for (const name of Object.keys(devDependencies)) need(join(web, 'node_modules', name), 'run `npm ci` in web/');
}
if (!values.address) need(join(web, 'dist/wasm/tierflow_bg.wasm'), 'build it with `cargo xtask web build`');

const folders = values.unit ? ['unit'] : values.large ? ['large'] : ['unit', 'browser'];
const files = folders.flatMap((folder) => {
  const isWanted = (path) => values.only.length === 0 || values.only.some((text) => path.includes(text));
  const names = readdirSync(join(here, folder)).filter((name) => name.endsWith('.test.mjs') && isWanted(`${folder}/${name}`));
  return names.sort().map((name) => join(here, folder, name));
});
const environment = {
  ...process.env,
  TIERFLOW_WEB_ADDRESS: values.address ?? '',
  TIERFLOW_WEB_MODEL: model,
  TIERFLOW_WEB_TINY: resolve(values.tiny),
  TIERFLOW_WEB_EXPERTS: resolve(values.experts),
  TIERFLOW_WEB_PROGRAM: resolve(values.program),
  TIERFLOW_WEB_CHROMIUM: values.chromium,
  TIERFLOW_WEB_FIREFOX: existsSync(values.firefox) ? values.firefox : '',
  TIERFLOW_WEB_SHORT: values.short ? '1' : '',
  TIERFLOW_WEB_LARGE: values.large ? resolve(values.large) : '',
  TIERFLOW_WEB_LONG: values.long ? '1' : '',
  TIERFLOW_WEB_PICTURES: values.pictures ? resolve(web, '../docs/pictures') : '',
};
// One file at a time: a software adapter takes all cores.
const { status } = spawnSync(process.execPath, ['--test', '--test-concurrency=1', '--test-reporter=spec', ...files], {
  stdio: 'inherit',
  env: environment,
});
process.exit(status ?? 1);

function need(path, advice) {
  if (existsSync(path)) return;
  console.error(`${path} is missing: ${advice}`);
  process.exit(1);
}
