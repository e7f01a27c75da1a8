// The package's public API: `init`, `Engine`, errors. Holds no model; all work is done by the worker of each engine.

import { Completions } from './completions.js';
import { Connection } from './connection.js';
import { describeSources } from './describe.js';
import { Embeddings } from './embeddings.js';
import { TierflowError, abortError } from './errors.js';
import { invalid } from './invalid.js';
import { NodeWorker } from './node.js';
import { SharedLine, canShare } from './shared.js';
import { bytesAt, hasDisk } from './sources/disk.js';
import { describeAdapter, linesOf, trainedOf } from './training.js';

export * from './errors.js';
export { nameOfUrl } from './describe.js';
export { fromHub, listHub, parseHubName } from './hub.js';
export { checkWebGpu } from './webgpu.js';

/** A load that is cancelled has nothing to lose: a worker that does not hear of it is ended after this time. */
const LOAD_GRACE_MS = 1500;
/** Threads that are taken without being asked for. Weights come from memory, which more do not make faster. */
const MOST_THREADS = 8;

/** Addresses that take the place of those beside this file. */
let settings = {};
let compiled = null;

/**
 * Fetches and compiles the engine, once for all engines of the page. An engine calls it by itself where it was not called.
 * @param {{wasm?: string | URL, wasmThreads?: string | URL, worker?: string | URL, threads?: number}} [overrides] other addresses of the
 *   files, and the threads that compute what the processor computes, where the page is isolated from other origins
 */
export async function init(overrides) {
  if (overrides) {
    settings = { ...settings, ...overrides };
    compiled = null;
  }
  compiled ??= compileFor(nThreads());
  try {
    return void (await compiled);
  } catch (error) {
    compiled = null;
    throw error;
  }
}

/** Whether threads of Node are the workers. */
const isNode = hasDisk && typeof Worker !== 'function';

/** Threads that may compute: one, unless the browser lets the page share memory. */
function nThreads() {
  const isShared = (globalThis.crossOriginIsolated || isNode) && typeof SharedArrayBuffer === 'function' && (settings.wasmThreads || !settings.wasm);
  const nCores = globalThis.navigator?.hardwareConcurrency ?? 1;
  return isShared ? Math.max(1, Math.trunc(settings.threads ?? Math.min(nCores, MOST_THREADS))) : 1;
}

/** The wasm for so many threads, with their number. Where the one for several is not to be had, one computes. */
async function compileFor(nThreads) {
  const shared = nThreads > 1 && (await compile(addressOfThreads()).catch(() => null));
  return shared ? { module: shared, nThreads } : { module: await compile(addressOfWasm()), nThreads: 1 };
}

/** Bundlers know the file by this very expression. */
function addressOfWasm() {
  return settings.wasm ?? addressed(() => new URL('./wasm/tierflow_bg.wasm', import.meta.url));
}

function addressOfThreads() {
  return settings.wasmThreads ?? addressed(() => new URL('./wasm/tierflow_threads_bg.wasm', import.meta.url));
}

function addressed(address) {
  try {
    return address();
  } catch {
    throw new TierflowError('this script does not know its own address, as in bundles that are no modules; init({ worker, wasm }) takes the addresses of both files');
  }
}

/** As with the wasm, bundlers must see the address inside of the expression. */
function startWorker() {
  if (isNode) return new NodeWorker();
  if (settings.worker) return new Worker(settings.worker, { type: 'module', name: 'tierflow' });
  return new Worker(new URL('./worker.js', import.meta.url), { type: 'module', name: 'tierflow' });
}

/** Starts a worker, and others that help it, unless `expectWanted` throws. */
async function startEngine(connection, expectWanted = () => {}) {
  await init();
  expectWanted();
  let { helpers, refusal } = await connection.call('start', await compiled);
  if (refusal !== undefined) {
    console.warn(`tierflow: one thread computes, since workers cannot share memory here: ${refusal}`);
    compiled = compileFor(1);
    await init();
    expectWanted();
    ({ helpers } = await connection.call('start', await compiled));
  }
  connection.help(helpers);
}

async function compile(address) {
  if (hasDisk && new URL(address).protocol === 'file:') return WebAssembly.compile(bytesAt(address)); // Node fetches none.
  const response = await fetch(address).catch((error) => {
    throw new TierflowError(`cannot load the engine from ${address}: ${error.message}`);
  });
  if (!response.ok) throw new TierflowError(`cannot load the engine from ${address}: the server answers ${response.status}`);
  const isWasm = response.headers.get('Content-Type')?.startsWith('application/wasm');
  try {
    return await (isWasm ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer()));
  } catch (error) {
    throw new TierflowError(`cannot start the engine from ${address}: ${error.message}`);
  }
}

/**
 * Plans and runs one model at a time, in a worker of its own. Calls may overlap; the worker takes them in turn.
 * A model is a `File`, the files of a folder, or an address; `{url, keep: true}` is downloaded once into the browser's
 * storage and streamed from there.
 */
export class Engine {
  #connection;
  /** Whether other tabs have the same worker. */
  #isShared;
  /** What was loaded last: `{args, onProgress}`, for a shared worker that has to load it again. */
  #model = null;
  #started = null;
  #loaded = null;
  /** Another one after each `close`: what was asked before finds that it has ended. */
  #life = {};

  /** `engine.chat.completions.create(…)`. */
  chat = { completions: new Completions(...this.#answering()) };

  /** `engine.completions.create({prompt: …})`: a text is continued as it is. */
  completions = Completions.ofText(...this.#answering());

  /** `engine.embeddings.create({input: …})`, of a model that was loaded with `embeddings: true`. */
  embeddings = new Embeddings((request, options) => this.#answer('embed', request, options), () => this.#loaded?.name ?? '');

  /** Models kept in the browser's storage. */
  storage = {
    /** Every stored model, whole or in part, and what the storage holds. */
    list: ({ signal } = {}) => this.#call('stored', {}, { signal }),
    /** Removes one by its `key`. */
    remove: (key, { signal } = {}) => this.#call('removeStored', { key }, { signal }),
    /** Asks the browser not to clear models away when its disk is full; resolves to whether it has agreed. */
    persist: async () => (await globalThis.navigator?.storage?.persist?.().catch(() => false)) ?? false,
  };

  /**
   * @param {{shared?: string}} [options] with `shared`, all tabs of the origin whose engines have the same name compute in one worker,
   *   which one of them hosts; where the browser does not let them (plain http://), the engine has a worker of its own
   */
  constructor({ shared, ...others } = {}) {
    const [unknown] = Object.keys(others);
    if (unknown !== undefined) throw invalid(unknown, 'is not known; there is shared');
    if (shared !== undefined && (typeof shared !== 'string' || shared === '')) throw invalid('shared', 'give the name that the engines of all tabs have in common');
    this.#isShared = shared !== undefined && canShare();
    const start = this.#isShared ? () => new SharedLine(shared, startWorker, startEngine) : startWorker;
    this.#connection = new Connection(start, () => this.#forget());
  }

  /** What was loaded last: `{name, plan}`; `null` before, and after the worker was ended. */
  get loaded() {
    return this.#loaded;
  }

  /**
   * The adapters, the host and the disk of this browser. Without WebGPU there is no adapter among them.
   * @param {{signal?: AbortSignal, measure?: boolean}} [options] with `measure`, all of their rates are measured anew
   */
  devices({ signal, measure = false } = {}) {
    return this.#call('devices', { measure }, { signal });
  }

  /** What a model is made of, from its headers alone. */
  async inspect(source, { signal } = {}) {
    return this.#call('inspect', { sources: describeSources(source) }, { signal });
  }

  /**
   * Where everything would live and how fast it should go; only headers are read. What was never measured of this machine is measured
   * first, in about a second, unless `measure` is false.
   * @param {object} [options] see `PlanOptions`; also `signal` and `onProgress({stage})`, which is told of measuring
   * @param {string} [devices] text of a devices file: the plan is then for that machine
   */
  async plan(source, { signal, onProgress, ...options } = {}, devices = undefined) {
    return this.#call('plan', { sources: describeSources(source), options, devices }, { signal, onEvent: onProgress });
  }

  /**
   * Makes a model ready to answer. What was loaded before is given up first.
   * @param {object} [options] those of `plan`, and `signal` and `onProgress({stage, done, total})`; `adapter` are the files of a LoRA
   *   adapter, which is multiplied by `lora_scale`
   */
  async load(source, { signal, onProgress, adapter, ...options } = {}) {
    const sources = describeSources(source);
    const life = this.#life;
    const args = { sources, options, adapter: adapter ? describeAdapter(adapter) : [] };
    this.#giveUp(sources);
    const plan = await this.#call('load', { ...args, unlessLoaded: this.#isShared }, { signal, onEvent: onProgress, graceMs: LOAD_GRACE_MS }, life);
    this.#expectAlive(life);
    this.#loaded = { name: sources[0].name, plan };
    this.#model = { args, onProgress };
    return this.#loaded;
  }

  /**
   * Trains a LoRA adapter for a model, in this browser. What was loaded before is given up first.
   * @param {string | Iterable<object>} records lines of JSON, or objects: `{messages}`, `{prompt, completion}` or `{text}`
   * @param {object} [options] those of `tierflow train` by their names, see `TrainOptions`; also `signal`, `onProgress({stage, done, total})`
   *   of loading and `onStep(report)`
   * @returns {Promise<object>} the adapter's files and what each step did; a raised signal rejects with an `AbortError` that has the same as
   *   `trained`, as far as it came
   */
  async train(source, records, { signal, onProgress, onStep, ...options } = {}) {
    const sources = describeSources(source);
    const life = this.#life;
    const args = { sources, options, records: linesOf(records) };
    this.#giveUp(sources);
    const onEvent = (event) => (event.stage === 'step' ? onStep : onProgress)?.(event);
    try {
      return trainedOf(await this.#call('train', args, { signal, onEvent }, life));
    } catch (error) {
      const { partial, ...others } = error;
      throw partial ? Object.assign(abortError(error.message), others, { trained: trainedOf(partial) }) : error;
    }
  }

  /** Spans of the last `nForwards` forwards, lane by lane, and their sums; also while an answer is made. */
  trace(nForwards = 3) {
    return this.#call('trace', { nForwards });
  }

  /** All spans that are kept, as the text of a file for ui.perfetto.dev. */
  perfetto() {
    return this.#call('perfetto');
  }

  /** What the expert cache was asked for since the model was loaded, layer by layer; also while an answer is made. */
  experts() {
    return this.#call('experts');
  }

  /** Peak and budget of each device, and the bytes of the engine's own memory. */
  memory() {
    return this.#call('memory');
  }

  /** Gives up the model and the GPU, and ends what is under way with an `AbortError`. The engine can be used again. */
  close() {
    this.#life = {};
    this.#forget();
    this.#connection.close();
  }

  // `using engine = new Engine()`, where the browser has it.
  static {
    if (Symbol.dispose) this.prototype[Symbol.dispose] = this.prototype.close;
  }

  /** What is loaded goes; what is to be kept of the next model asks the browser for its room, who may ask a person: loading does not wait for that. */
  #giveUp(sources) {
    this.#loaded = null;
    this.#model = null;
    if (sources.some((part) => part.keep)) void this.storage.persist();
  }

  /** What completions ask, and what the model is called. */
  #answering() {
    return [(request, options) => this.#answer('generate', request, options), () => this.#loaded?.name ?? ''];
  }

  #forget() {
    this.#started = null;
    this.#loaded = null;
    this.#model = null;
  }

  /** Asks the model that this engine has loaded. A shared worker may have to load it again, which `onProgress` of `load` is told of. */
  #answer(method, request, { onEvent, ...options }) {
    if (!this.#isShared) return this.#call(method, { request }, { onEvent, ...options });
    const model = this.#model;
    const tell = (event) => (event.stage ? model?.onProgress : onEvent)?.(event);
    return this.#call(method, { request, model: model?.args }, { ...options, onEvent: tell });
  }

  /** Asks the worker, unless the engine was closed since `life` began. */
  async #call(method, args, options, life = this.#life) {
    this.#expectAlive(life);
    if (!this.#isShared) await (this.#started ??= this.#start(life));
    this.#expectAlive(life);
    return this.#connection.call(method, args, options);
  }

  async #start(life) {
    try {
      await startEngine(this.#connection, () => this.#expectAlive(life));
    } catch (error) {
      if (life === this.#life) this.#started = null;
      throw error;
    }
  }

  #expectAlive(life) {
    if (life !== this.#life) throw abortError('The engine was closed');
  }
}
