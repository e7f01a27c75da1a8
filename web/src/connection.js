// The page's end of the line to the worker: numbered requests, their answers, and events in between.
// The worker starts with the first request; where it must be ended, the next request starts another.
// Knows nothing of models.

import { TierflowError, abortError, fromPlain } from './errors.js';
import { inTask } from './task.js';

/** How long a worker may take to give its files back before it is ended without. */
const END_MS = 1000;

export class Connection {
  #startWorker;
  #onWorkerEnd;
  #worker = null;
  /** Workers that compute with it; they end with it. */
  #helpers = [];
  #pending = new Map();
  #lastId = 0;

  /**
   * @param {() => Worker} startWorker or a line to one, such as `SharedLine`
   * @param {() => void} onWorkerEnd called when a worker has gone with all that it held
   */
  constructor(startWorker, onWorkerEnd) {
    this.#startWorker = startWorker;
    this.#onWorkerEnd = onWorkerEnd;
  }

  /**
   * Asks the worker.
   * @param {string} method
   * @param {object} [args] anything that `postMessage` carries
   * @param {{signal?: AbortSignal, onEvent?: (event: object) => void, graceMs?: number}} [options] `graceMs`: how long the worker
   *   may take to hear of a raised signal before it is ended, with all that it holds; without, it is waited for
   * @returns {Promise<any>} the worker's answer; rejects with its error, or with an `AbortError` once the signal is raised
   */
  call(method, args = {}, { signal, onEvent, graceMs } = {}) {
    if (signal?.aborted) return Promise.reject(abortError());
    const id = (this.#lastId += 1);
    return new Promise((resolve, reject) => {
      const cancel = () => this.#cancel(id);
      signal?.addEventListener('abort', cancel, { once: true });
      const finish = (settle) => (value) => {
        clearTimeout(this.#pending.get(id)?.timer);
        this.#pending.delete(id);
        signal?.removeEventListener('abort', cancel);
        settle(value);
      };
      this.#pending.set(id, { resolve: finish(resolve), reject: finish(reject), onEvent, graceMs });
      try {
        this.#worker ??= this.#start();
        this.#worker.postMessage({ id, method, args });
      } catch (error) {
        this.#pending.get(id).reject(new TierflowError(`cannot ask the worker to ${method}: ${error.message}`));
      }
    });
  }

  /** Starts other workers that compute with this one; each is told what `tasks` has for it. One that does not start is not missed. */
  help(tasks) {
    for (const task of tasks) {
      const helper = this.#startWorker();
      helper.onerror = (event) => event.preventDefault();
      helper.postMessage({ help: task });
      this.#helpers.push(helper);
    }
  }

  /** Ends the worker; requests under way fail with `reason`. */
  close(reason = abortError('The engine was closed')) {
    if (!this.#worker) return;
    end(this.#worker, this.#helpers);
    this.#worker = null;
    this.#helpers = [];
    for (const request of [...this.#pending.values()]) request.reject(reason);
    this.#onWorkerEnd();
  }

  #start() {
    const worker = this.#startWorker();
    worker.onmessage = ({ data }) => this.#receive(data);
    worker.onerror = (event) => {
      event.preventDefault();
      const advice = 'its script could not be loaded; where a bundler left it behind, init({ worker, wasm }) takes the addresses of both files';
      this.close(event.error instanceof TierflowError ? event.error : new TierflowError(`the worker failed: ${event.message || advice}`));
    };
    return worker;
  }

  #receive({ id, event, step, value, error }) {
    const request = this.#pending.get(id);
    if (!request) return;
    if (event) {
      request.onEvent?.(event);
      // In a task of its own: who has had enough with this event says so before.
      if (step !== undefined) inTask(() => this.#worker?.postMessage({ id, taken: step }));
    } else if (error?.isFatal) this.close(fromPlain(error));
    else if (error) request.reject(fromPlain(error));
    else request.resolve(value);
  }

  /** Asks the worker to stop; one that is busy and does not answer in time is terminated. */
  #cancel(id) {
    const request = this.#pending.get(id);
    if (!request) return;
    this.#worker?.postMessage({ id, cancel: true });
    if (request.graceMs !== undefined) request.timer = setTimeout(() => this.close(abortError()), request.graceMs);
  }
}

/**
 * Ends a worker that nobody asks any more. One that is terminated keeps its files until the GPU is done with all that it was given, and
 * Deno may crash at the program's end; so it ends itself where it can.
 */
function end(worker, helpers) {
  const timer = setTimeout(() => [worker, ...helpers].forEach((each) => each.terminate()), END_MS);
  worker.onmessage = ({ data }) => {
    if (!data.ended) return;
    clearTimeout(timer);
    helpers.forEach((helper) => helper.terminate());
  };
  worker.onerror = (event) => event.preventDefault();
  worker.postMessage({ end: true });
}
