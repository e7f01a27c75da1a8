// Threads for the processor's part, where the page may share memory: workers that instantiate the same wasm with the same memory,
// and take parts of what the engine's worker hands out. They run nothing else, so the engine needs no locks. What is handed out
// stands in a few shared words, `control`; atomics on them also make visible what each has written.

/** The words, in lines of a processor's cache of their own. */
const STATE = 0; // counts up; odd while a job is handed out
const NEXT = 32; // the next part
const JOB = 64;
const N_PARTS = 65;
const INSIDE = 96; // helpers that may be at the job
const FAILED = 128;
const N_WORDS = 160;

/** Looks before one waits for others: about a tenth of a millisecond, since the next job mostly comes soon. */
const N_LOOKS = 10_000;
/** The most that wasm can address, and less for browsers that do not give as much, in pages of 64 KiB. */
const MOST_PAGES = [65_536, 32_768, 16_384, 8_192];

/** Memory that workers share, of at least `nPages`. */
export function newMemory(nPages) {
  for (const maximum of MOST_PAGES) {
    try {
      return new WebAssembly.Memory({ initial: nPages, maximum, shared: true });
    } catch (error) {
      if (maximum === MOST_PAGES.at(-1)) throw error;
    }
  }
}

export function newControl() {
  return new Int32Array(new SharedArrayBuffer(N_WORDS * Int32Array.BYTES_PER_ELEMENT));
}

/** Hands out what the engine's worker computes. Helpers that are not there yet are not waited for. */
export class Spreader {
  #control;
  #runPart;

  /**
   * @param {Int32Array} control
   * @param {(job: number, thread: number, part: number) => void} runPart the wasm's
   */
  constructor(control, runPart) {
    this.#control = control;
    this.#runPart = runPart;
  }

  /** Returns when all parts are done. */
  spread(job, nParts) {
    const control = this.#control;
    Atomics.store(control, JOB, job);
    Atomics.store(control, N_PARTS, nParts);
    Atomics.store(control, NEXT, 0);
    Atomics.add(control, STATE, 1);
    Atomics.notify(control, STATE);
    takeParts(control, 0, this.#runPart);
    // Who comes later finds it closed; who came before is waited for.
    Atomics.add(control, STATE, 1);
    for (let nLooks = 0, nInside; (nInside = Atomics.load(control, INSIDE)) !== 0; nLooks += 1) {
      if (nLooks >= N_LOOKS) Atomics.wait(control, INSIDE, nInside);
    }
    // The job is incomplete, so the engine cannot go on.
    if (Atomics.load(control, FAILED) !== 0) throw new WebAssembly.RuntimeError('a thread has failed; the console says how');
  }
}

/** Takes parts from now on, as thread number `thread` with a stack that ends at `stackEnd`; does not return. */
export function help({ module, memory, control, thread, stackEnd }) {
  const { exports } = new WebAssembly.Instance(module, importsOf(module, memory));
  exports.__stack_pointer.value = stackEnd;
  for (let done = 0; ; ) {
    done = nextState(control, done);
    Atomics.add(control, INSIDE, 1);
    try {
      if (Atomics.load(control, STATE) === done) takeParts(control, thread, exports.run_part);
    } catch (error) {
      Atomics.store(control, FAILED, 1);
      throw error;
    } finally {
      if (Atomics.sub(control, INSIDE, 1) === 1) Atomics.notify(control, INSIDE);
    }
  }
}

/** Waits until a job other than that of `done` is handed out. */
function nextState(control, done) {
  for (let nLooks = 0; ; nLooks += 1) {
    const state = Atomics.load(control, STATE);
    if (state % 2 !== 0 && state !== done) return state;
    if (nLooks >= N_LOOKS) Atomics.wait(control, STATE, state);
  }
}

function takeParts(control, thread, runPart) {
  const job = Atomics.load(control, JOB);
  const nParts = Atomics.load(control, N_PARTS);
  for (let part; (part = Atomics.add(control, NEXT, 1)) < nParts; ) runPart(job, thread, part);
}

/** The memory; a part calls nothing of JavaScript's. */
function importsOf(module, memory) {
  const imports = {};
  for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
    imports[from] ??= {};
    imports[from][name] = kind === 'memory' ? memory : notHere(name);
  }
  return imports;
}

function notHere(name) {
  return () => {
    throw new Error(`a thread has called ${name}`);
  };
}
