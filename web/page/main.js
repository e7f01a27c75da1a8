// The page: which model is chosen, and which views are notified. Two engines: one plans, one holds the model that answers.

import { nameOfUrl } from '../describe.js';
import { Engine, checkWebGpu } from '../index.js';
import { ChatView } from './chat-view.js';
import { byId, showError } from './elements.js';
import { bytes } from './format.js';
import { droppedFiles, isDevicesFile } from './pick.js';
import { PlanView } from './plan-view.js';
import { RunView } from './run-view.js';
import { TimelineView } from './timeline-view.js';

/** A model that may lie beside the page. */
const BESIDE = new URL('../models/SmolLM2-135M-Instruct.Q4_1.gguf', import.meta.url).href;

const planner = new Engine();
const runner = new Engine();

const chat = new ChatView({
  engine: runner,
  onBusy: (isBusy) => timeline.setBusy(isBusy),
  onDeviceLost: (error) => {
    setLoaded(null);
    run.lost(error);
  },
});
const timeline = new TimelineView(runner, (size) => chat.setBytesPerToken(size));
const plan = new PlanView(planner, (planned) => run.planChanged(planned));
const run = new RunView({ runner, planner, plan, onLoaded: setLoaded });

function setLoaded(loaded) {
  chat.setLoaded(loaded);
  timeline.setLoaded(loaded);
}

/** Reads the headers of a model, from this browser's storage if it is there, and shows what can be known of it. */
async function choose(source) {
  const model = source.url ? { url: source.url, keep: true, name: source.name } : source.files;
  showError(byId('model-error'));
  byId('model-facts').textContent = 'Reading headers…';
  try {
    const inspection = await planner.inspect(model);
    byId('model-facts').textContent = factsOf(inspection);
    await run.show(source, inspection);
    await plan.show(model, inspection);
  } catch (error) {
    // What was planned for another model is none of this one's.
    byId('model-facts').textContent = '';
    plan.hide();
    run.hide();
    showError(byId('model-error'), error);
  }
}

function factsOf({ config, n_parameters, size_bytes, n_tensors, bytes_by_dtype }) {
  const dtypes = Object.entries(bytes_by_dtype).map(([dtype, size]) => `${dtype} ${bytes(size)}`);
  const size = `${(n_parameters / 1e6).toFixed(1)} M parameters, ${bytes(size_bytes)} in ${n_tensors} tensors (${dtypes.join(', ')})`;
  return `${config.name || 'Unnamed'}: ${size}, ${config.n_layers} layers, context ${config.context_length}.`;
}

async function chooseFiles(list) {
  const files = [...list];
  if (files.length === 0) return;
  if (await isDevicesFile(files)) return plan.useDevicesFile(files[0]);
  const name = files.length === 1 ? files[0].name : files[0].webkitRelativePath?.split('/')[0] || 'the folder';
  await choose({ files, name });
}

function chooseUrl(url, name = nameOfUrl(url)) {
  return choose({ url, name });
}

for (const kind of ['file', 'folder']) {
  byId(`choose-${kind}`).addEventListener('click', () => byId(kind).click());
  byId(kind).addEventListener('change', async ({ target }) => {
    await chooseFiles(target.files);
    target.value = '';
  });
}

byId('url-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = byId('url').value.trim();
  if (!text) return byId('url').focus();
  try {
    chooseUrl(new URL(text, location.href).href);
  } catch {
    showError(byId('model-error'), { name: 'InvalidArgumentError', message: `\`${text}\` is no address; write https://… with the path of a .gguf file.` });
  }
});

run.onUse = ({ url, name }) => chooseUrl(url, name);
byId('use-beside').addEventListener('click', () => chooseUrl(BESIDE));

document.addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dragging');
});
document.addEventListener('dragleave', (event) => event.relatedTarget ?? document.body.classList.remove('dragging'));
document.addEventListener('drop', async (event) => {
  event.preventDefault();
  document.body.classList.remove('dragging');
  await chooseFiles(await droppedFiles(event.dataTransfer));
});

async function tellWebGpu() {
  const found = await checkWebGpu();
  const place = byId('webgpu');
  if (!found.ok) {
    place.textContent = `The processor computes here: planning and chat work, slower than with a GPU. ${found.reason} ${found.advice} (The step that failed: ${found.step}.)`;
    return;
  }
  const limits = `buffers up to ${bytes(found.limits.maxBufferSize)}, bindings up to ${bytes(found.limits.maxStorageBufferBindingSize)}`;
  place.textContent = found.isSoftware
    ? `The processor computes here, unless a plan says otherwise: the adapter that WebGPU offers, ${found.name}, is software (${limits}).`
    : `WebGPU: ${found.name}, ${limits}.`;
}

async function offerBeside() {
  const head = await fetch(BESIDE, { method: 'HEAD' }).catch(() => null);
  byId('use-beside').hidden = !head?.ok;
}

tellWebGpu();
offerBeside();
