// The bench page: how fast one model reads and answers on each device of this browser, in turns. It knows the package's public API alone.

import { Engine, checkWebGpu, fromHub, parseHubName } from '../index.js';
import { byId, element, showError } from './elements.js';
import { tokensPerSec } from './format.js';

const TRIAL = 'bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M';
/** Tokens that a word of the prompt has at most. */
const TOKENS_PER_WORD = 6;

let stop = null;

byId('source').value = new URLSearchParams(location.search).get('model') ?? TRIAL;
byId('asked').addEventListener('submit', (event) => {
  event.preventDefault();
  run();
});
byId('stop').addEventListener('click', () => stop?.abort());
byId('copy').addEventListener('click', async () => {
  await navigator.clipboard.writeText(byId('json').textContent);
  byId('copied').textContent = 'Copied.';
});

const say = (words) => (byId('said').textContent = words);
const numberIn = (id) => byId(id).valueAsNumber;

async function run() {
  stop = new AbortController();
  setRunning(true);
  showError(byId('error'));
  byId('found').hidden = true;
  byId('copied').textContent = '';
  const engines = [];
  try {
    const asked = { model: byId('source').value.trim(), n_words: numberIn('n-words'), n_tokens: numberIn('n-tokens'), n_rounds: numberIn('n-rounds') };
    const gpu = await checkWebGpu();
    const devices = [{ device: 'cpu', name: 'processor' }, ...(gpu.ok ? [{ device: 'gpu:0', name: gpu.name }] : [])];
    for (const { device } of devices) engines.push(await loaded(asked, device));
    show(asked, devices, await measured(asked, devices, engines));
    say('');
  } catch (error) {
    say(error.name === 'AbortError' ? 'Stopped.' : '');
    if (error.name !== 'AbortError') showError(byId('error'), error);
  }
  engines.forEach((engine) => engine.close());
  setRunning(false);
}

/** An engine with the model on this device, after a first answer: kernels compile, and memory is touched. */
async function loaded(asked, device) {
  const engine = new Engine();
  const { signal } = stop;
  try {
    const name = parseHubName(asked.model);
    const source = name ? await fromHub(name.repo, { quant: name.quant, signal }) : { url: new URL(asked.model, location.href).href, keep: Boolean(navigator.storage?.getDirectory) };
    const ctx_size = TOKENS_PER_WORD * asked.n_words + asked.n_tokens;
    const onProgress = ({ stage, done, total }) => say(`${device}: ${stage}${total ? `, ${Math.round((100 * done) / total)} %` : ''}`);
    await engine.load(source, { device, ctx_size, signal, onProgress });
    await answered(engine, asked, 0);
    return engine;
  } catch (error) {
    engine.close();
    throw error;
  }
}

/** Rates of all rounds: `{device, round, …}`. The devices take turns, so that what else the machine does meets all of them. */
async function measured(asked, devices, engines) {
  const runs = [];
  for (let round = 1; round <= asked.n_rounds; round += 1) {
    for (const [index, { device }] of devices.entries()) {
      say(`${device}: round ${round} of ${asked.n_rounds}`);
      runs.push({ device, round, ...(await answered(engines[index], asked, round)) });
    }
  }
  return runs;
}

/** What an answer took. Its prompt begins unlike that of any other round, so that nothing of it is in the cache. */
async function answered(engine, { n_words, n_tokens }, round) {
  const prompt = `${round}${' word'.repeat(n_words)}`;
  const { usage } = await engine.completions.create({ prompt, temperature: 0, max_tokens: n_tokens }, { signal: stop.signal });
  const { prompt_secs, decode_secs } = usage.extra;
  const n_read = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens;
  const n_decoded = usage.completion_tokens - 1;
  return { n_read, prompt_secs, prompt_ts: n_read / prompt_secs, n_decoded, decode_secs, decode_ts: n_decoded > 0 ? n_decoded / decode_secs : null };
}

function show(asked, devices, runs) {
  const rows = devices.map(({ device, name }) => {
    const own = runs.filter((run) => run.device === device);
    return { device, name, prompt_ts: median(own.map(({ prompt_ts }) => prompt_ts)), decode_ts: median(own.map(({ decode_ts }) => decode_ts)) };
  });
  const head = ['Device', 'Prompt', 'Answer'].map((words, index) => element('th', { scope: 'col', class: index > 0 && 'number' }, words));
  const rate = (value) => element('td', { class: 'number' }, value === null ? 'none' : tokensPerSec(value));
  const body = rows.map(({ device, name, prompt_ts, decode_ts }) => element('tr', {}, element('th', { scope: 'row' }, `${device}, ${name}`), rate(prompt_ts), rate(decode_ts)));
  byId('rates').replaceChildren(element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body));
  byId('json').textContent = JSON.stringify({ schema: 'tierflow.web-bench/1', ...asked, browser: navigator.userAgent, devices: rows, runs }, null, 2);
  byId('found').hidden = false;
}

/** The middle one of the values that there are; of an even number, the upper one. */
function median(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? null;
}

function setRunning(isRunning) {
  byId('run').disabled = isRunning;
  byId('stop').disabled = !isRunning;
}
