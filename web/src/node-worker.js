// The worker as a thread of Node: what a browser gives its workers, and then the worker itself.

import { parentPort } from 'node:worker_threads';

/** The engine asks whether it is in a worker. */
class WorkerGlobalScope {
  static [Symbol.hasInstance]() {
    return true;
  }
}

globalThis.self = globalThis;
globalThis.navigator ??= {};
globalThis.WorkerGlobalScope = globalThis.DedicatedWorkerGlobalScope = WorkerGlobalScope;
globalThis.postMessage = (message) => parentPort.postMessage(message);
globalThis.close = () => parentPort.close();
await import('./worker.js');
// What came before waits for this.
parentPort.on('message', (data) => globalThis.onmessage({ data }));
