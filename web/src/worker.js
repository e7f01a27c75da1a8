// The worker: holds the engine's wasm, the open model and the loaded one. Files are read here, synchronously, while the GPU
// computes elsewhere. Requests that touch the engine take turns; what only looks (trace, memory, storage) does not wait. The same
// script is what helps such a worker with its products.

import { Asker } from './calls.js';
import { sameSources } from './describe.js';
import { InvalidArgumentError, TierflowError, abortError, toPlain } from './errors.js';
import { Serving } from './serving.js';
import { DiskSource } from './sources/disk.js';
import { openFile } from './sources/file.js';
import { openHttp } from './sources/http.js';
import { Rates } from './sources/rates.js';
import { Store } from './sources/store.js';
import { inTask } from './task.js';
import { Spreader, help, newControl, newMemory } from './threads.js';
import * as wasm from './wasm/tierflow.js';

/** Progress is reported at most so often. */
const PROGRESS_MS = 60;

let hasStarted = false;
/** The model whose headers are open: `{sources, parts, model}`; `sources` as described, `parts` as opened. */
let opened = null;
/** The engine that answers, its model, the parts that it reads from, what `load` was asked, and whether its GPU was lost. */
let running = null;
/** The devices of this browser, once they were asked for. */
let found = null;
/** Where measured rates are kept, once they were asked for. */
let kept = null;
/** Requests that take turns wait for this one. */
let turn = Promise.resolve();
/** The worker's own page, and the tabs that share it, where there are some. */
const page = new Asker((message) => self.postMessage(message), answer);
let serving = null;
/** Sources that are open. */
const openParts = new Set();

const answers = {
  async start({ module, nThreads }) {
    if (nThreads > 1) return startShared(module, nThreads);
    await wasm.default({ module_or_path: module });
    hasStarted = true;
    return { helpers: [] };
  },
  async devices({ measure }) {
    if (measure) {
      await recallRates();
      await wasm.devices(true);
      await keepRates();
    }
    return (await findDevices()).devices;
  },
  inspect: async ({ sources }, call) => JSON.parse((await open(sources, call)).inspect()),
  async plan({ sources, options, devices }, call) {
    if (devices === undefined) await measure(await open(sources, call), options, call);
    await findDevices();
    return JSON.parse((await open(sources, call)).plan(JSON.stringify(options), devices));
  },
  load,
  train,
  async generate({ request, model }, call) {
    const engine = await engineOf(model, call);
    const read = (done, total) => call.step({ done, total });
    const step = (told) => call.step(JSON.parse(told));
    // Also before the first part of the prompt is read.
    call.signal.addEventListener('abort', () => engine.cancel());
    const answer = await engine.generate(JSON.stringify(request), read, step);
    if (engine.learnt()) await keepRates();
    return JSON.parse(answer);
  },
  async embed({ request, model }, call) {
    const told = (done, total) => call.step({ done, total });
    return JSON.parse(await (await engineOf(model, call)).embed(JSON.stringify(request), told));
  },
};

const glances = {
  /** Answers tabs from now on; is answered itself when none is left. */
  serve(place) {
    serving = new Serving(place, answer);
    return serving.ended;
  },
  trace: ({ nForwards }) => JSON.parse(expectEngine().trace(nForwards)),
  perfetto: () => expectEngine().perfetto(),
  experts: () => JSON.parse(expectEngine().experts()),
  memory: () => JSON.parse(expectEngine().memory()),
  stored: async () => (await Store.open()).list(),
  async removeStored({ key }) {
    closeOpened();
    await (await Store.open()).remove(key);
  },
};

self.onmessage = ({ data }) => {
  if (data.help) help(data.help);
  else if (data.end) end();
  else page.hear(data);
};

/**
 * Starts with a memory that other workers share, and shares the engine's work with them from now on; yields what each of these helpers
 * needs to know. Where the browser refuses such a memory, nothing has started, and `refusal` says why.
 */
async function startShared(module, nThreads) {
  let shared;
  try {
    shared = { module, memory: newMemory(wasm.sharedPages), control: newControl() };
    wasm.shareMemory(shared.memory);
    await wasm.default({ module_or_path: module });
  } catch (error) {
    return { refusal: error.message };
  }
  hasStarted = true;
  const stackEnds = wasm.share(nThreads, new Spreader(shared.control, wasm.run_part));
  return { helpers: Array.from(stackEnds, (stackEnd, index) => ({ ...shared, thread: index + 1, stackEnd })) };
}

/** Gives all files back, says so once nothing is under way any more, and ends. */
async function end() {
  page.leave();
  serving?.close();
  openParts.forEach((part) => part.close());
  await turn;
  self.postMessage({ ended: true });
  self.close();
}

/** What the browser has, asked once; without an adapter the host and the disk are left. */
async function findDevices() {
  await recallRates();
  found ??= wasm.devices(false).then(JSON.parse);
  found.catch(() => (found = null));
  return found;
}

/** Measures what is not known of the devices that may compute the model, and keeps it; without, typical rates stand for it. */
async function measure(model, options, call) {
  await recallRates();
  await model.measure(JSON.stringify(options), () => call.tell({ stage: 'measure', done: 0, total: null }));
  await keepRates();
}

/** Takes the rates that an earlier visit, or another tab since, has measured. */
async function recallRates() {
  kept ??= Rates.open(wasm.version());
  const rates = await (await kept).read();
  if (rates === null) return;
  wasm.recall(rates);
  found = null;
}

/** Keeps the rates that are known now; the devices are asked anew where they are others. */
async function keepRates() {
  if (await (await kept).write(wasm.rates())) found = null;
}

async function answer(method, args, call) {
  const work = () => {
    // It may have been given up while it waited for its turn.
    if (call.signal.aborted) throw abortError();
    return answers[method](args, call);
  };
  try {
    return await (method in glances ? glances[method](args) : inTurn(work));
  } catch (thrown) {
    const error = takeReadError(thrown);
    if (running && error.name === 'DeviceLostError') running.isLost = true;
    // Who asked this is told first.
    if (toPlain(error).isFatal) inTask(() => serving?.fail(error));
    throw error;
  }
}

function inTurn(work) {
  const mine = turn.then(() => {
    readError = null;
    return work();
  });
  turn = mine.catch(() => {});
  return mine;
}

/** Opens a model's headers, or gives the one that is open. */
async function open(sources, call) {
  if (opened && sameSources(opened.sources, sources)) return opened.model;
  closeOpened();
  opened = { sources, ...(await openModel(sources, 'plan', call)) };
  return opened.model;
}

function closeOpened() {
  opened?.model.free();
  opened?.parts.forEach((part) => part.close());
  opened = null;
}

/** Opens all parts and the model over them; where that fails, nothing stays open. */
async function openModel(sources, purpose, call) {
  const parts = [];
  try {
    for (const source of sources) parts.push(guarded(await openPart(source, purpose, call), call));
    return { parts, model: new wasm.Model(parts) };
  } catch (error) {
    parts.forEach((part) => part.close());
    throw error;
  }
}

/** Plans read stored models without a handle of their own, so that nobody is kept from replacing or deleting them. */
async function openPart({ kind, name, url, keep, file }, purpose, call) {
  if (kind === 'file') return openFile(name, file);
  if (kind === 'disk') return new DiskSource(name, url);
  // Headers can be read without a storage, too; what cannot be kept is reported when it is loaded.
  const store = keep && (purpose === 'run' || Store.isThere) ? await Store.open() : null;
  if (await store?.has(url)) return purpose === 'run' ? store.source(url) : openFile(name, await store.file(url));
  return openHttp(name, url, call.signal);
}

/** Why a read failed, in the words of its source: the engine passes on less than that. */
let readError = null;

/** The source as the engine sees it. While `call` is not answered, raising its signal ends all reads. */
function guarded(source, call) {
  const part = {
    name: source.name,
    size: source.size,
    read(offset, into) {
      try {
        if (call.signal.aborted && !call.isAnswered) throw abortError();
        source.read(offset, into);
      } catch (error) {
        readError = error;
        throw error;
      }
    },
    close() {
      openParts.delete(part);
      source.close();
    },
  };
  openParts.add(part);
  return part;
}

function takeReadError(error) {
  const own = readError;
  readError = null;
  return own ?? error;
}

/**
 * Checks that the model fits, downloads what is to be kept, and only then takes memory. With `unlessLoaded`, what is loaded and just
 * what is asked for stays.
 */
async function load({ sources, options, adapter, unlessLoaded }, call) {
  if (unlessLoaded && isLoaded({ sources, options, adapter })) return planOf(running);
  unload();
  const request = JSON.stringify(options);
  await measure(await open(sources, call), options, call);
  await findDevices();
  (await open(sources, call)).plan(request, undefined);
  const { parts, model } = await fetchModel(sources, call);
  try {
    const files = [];
    for (const { name, file } of adapter) files.push(guarded(await openFile(name, file), call));
    parts.push(...files);
    running = { asked: { sources, options, adapter }, parts, model, engine: await model.load(request, files, loading(call)) };
  } catch (error) {
    model.free();
    parts.forEach((part) => part.close());
    throw error;
  }
  return planOf(running);
}

function planOf({ engine }) {
  return JSON.parse(engine.plan()).plan;
}

/** Whether the engine that answers was loaded with this and can go on. */
function isLoaded({ sources, options, adapter }) {
  if (!running || running.isLost) return false;
  const { asked } = running;
  return sameSources(asked.sources, sources) && sameSources(asked.adapter, adapter) && JSON.stringify(asked.options) === JSON.stringify(options);
}

/** The engine that answers. What a tab has loaded is loaded again where it is another's now, or this worker has just begun. */
async function engineOf(model, call) {
  if (model && !isLoaded(model)) {
    // Reads of the answer itself are none of loading.
    const part = { signal: call.signal, isAnswered: false, tell: (event) => call.tell(event) };
    await load(model, part).finally(() => (part.isAnswered = true));
  }
  return expectEngine();
}

/** Trains an adapter for a model, step by step; one that was stopped has what was learnt until then. */
async function train({ sources, options, records }, call) {
  unload();
  await findDevices();
  const { parts, model } = await fetchModel(sources, call);
  let training = null;
  try {
    const { device, max_memory, measure: isMeasured } = options;
    await measure(model, { device, max_memory, measure: isMeasured }, call);
    training = await model.train(JSON.stringify(options), records, loading(call));
    call.signal.addEventListener('abort', () => training.cancel());
    const described = JSON.parse(training.describe());
    const steps = [];
    if (await call.step({ stage: 'train', ...described })) await takeSteps(training, call, steps);
    const [weightsName, weights, configName, config] = training.adapter();
    return { ...described, steps, adapter: [{ name: weightsName, bytes: weights }, { name: configName, bytes: config }] };
  } finally {
    training?.free();
    model.free();
    parts.forEach((part) => part.close());
  }
}

/** Takes steps until there are no more or nobody wants another, and notes them in `steps`. */
async function takeSteps(training, call, steps) {
  try {
    for (let report = await training.step(); report !== undefined; report = await training.step()) {
      steps.push(JSON.parse(report));
      if (!(await call.step({ stage: 'step', ...steps.at(-1) }))) return;
    }
  } catch (error) {
    if (error.name !== 'InterruptedError' || !call.signal.aborted) throw error;
  }
}

/** Downloads the parts that are to be kept, and opens the model for more than its headers. */
async function fetchModel(sources, call) {
  const fresh = await download(sources, call);
  return openModel(sources, 'run', call).catch((error) => forget(fresh, error));
}

/** A function that the engine tells how far it has loaded, and that says whether to go on. */
function loading(call) {
  const tell = seldom((done, total) => call.tell({ stage: 'load', done, total }));
  return (done, total) => {
    tell(done, total);
    return !call.signal.aborted;
  };
}

function unload() {
  running?.engine.free();
  running?.model.free();
  running?.parts.forEach((part) => part.close());
  running = null;
}

/** Downloads the parts that are to be kept and are not stored yet; yields their addresses. */
async function download(sources, call) {
  const fresh = [];
  for (const { url, name } of sources.filter((source) => source.keep)) {
    const store = await Store.open();
    if (await store.isCurrent(url, call.signal)) continue;
    const onProgress = seldom((done, total) => call.tell({ stage: 'download', done, total }));
    await store.download({ url, name }, { signal: call.signal, onProgress });
    closeOpened();
    fresh.push(url);
  }
  return fresh;
}

/** What was just downloaded and is no model is not kept: a server that announces no length may have sent half of one. */
async function forget(fresh, error) {
  if (error.name === 'InvalidFileError') {
    const store = await Store.open();
    for (const url of fresh) await store.forget(url);
  }
  throw error;
}

/** `report`, but not more often than makes sense; the last step always. */
function seldom(report) {
  let last = 0;
  return (done, total) => {
    const now = performance.now();
    if (now - last < PROGRESS_MS && done !== total) return;
    last = now;
    report(done, total);
  };
}

function expectEngine() {
  if (!hasStarted) throw new TierflowError('the engine has not started');
  if (!running) throw new InvalidArgumentError('no model is loaded; call load() first');
  return running.engine;
}
