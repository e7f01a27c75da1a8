// Node's threads as workers: Node has none of a browser's. `node-worker.js` is what runs in them.

/** Of no interest to bundlers, which would see it inside of the expression. */
const SCRIPT = './node-worker.js';

/** With those of a browser's worker's methods and handlers that `Connection` uses. */
export class NodeWorker {
  onmessage = () => {};
  onerror = () => {};
  #thread;

  constructor() {
    const { Worker } = globalThis.process.getBuiltinModule('node:worker_threads');
    this.#thread = new Worker(new URL(SCRIPT, import.meta.url));
    this.#thread.on('message', (data) => this.onmessage({ data }));
    this.#thread.on('error', ({ message }) => this.onerror({ message, preventDefault() {} }));
  }

  postMessage(message) {
    this.#thread.postMessage(message);
  }

  terminate() {
    void this.#thread.terminate();
  }
}
