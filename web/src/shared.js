// One worker for all tabs of an origin. Who gets a lock hosts it: the page starts the worker, which answers every tab, also its own
// page, over a channel of the tab's (`serving.js`). When the host goes, the browser gives the lock to another tab; requests whose
// answers have not begun are asked again there.

import { Connection } from './connection.js';
import { HostLostError, TierflowError, abortError, toPlain } from './errors.js';
import { hasDisk } from './sources/disk.js';

/** Tabs meet only where they speak alike: to be counted up when what is said to the worker changes. */
const PROTOCOL = 1;
/** A request is asked of so many hosts: what ends one may end the next. */
const MOST_HOSTS = 2;

/** Whether this browser lets tabs share: on plain http://, but from localhost, none does. Outside of browsers there are no tabs. */
export function canShare() {
  return !hasDisk && Boolean(globalThis.navigator?.locks) && typeof BroadcastChannel === 'function';
}

/** Whether a worker can be started here; service workers, and shared ones in Chromium, can only ask. */
function canHost() {
  return typeof Worker === 'function';
}

/** A line to the shared worker that can stand where the worker itself would. */
export class SharedLine {
  onmessage = () => {};
  onerror = () => {};
  #base;
  #tab = crypto.randomUUID();
  #startWorker;
  #startEngine;
  /** Where hosts and tabs look for each other, and where this tab asks. */
  #all;
  #own;
  /** When the host that answers took its place; 0 while there is none. */
  #host = 0;
  /** What is asked and not answered, by its number: `{message, isBegun, isCancelled, nHosts}`. */
  #asked = new Map();
  #end = new AbortController();

  /**
   * @param {string} name that the tabs have in common
   * @param {() => Worker} startWorker
   * @param {(connection: Connection) => Promise<void>} startEngine makes a worker that was started ready to answer
   */
  constructor(name, startWorker, startEngine) {
    this.#base = `tierflow/${PROTOCOL}/${name}`;
    this.#startWorker = startWorker;
    this.#startEngine = startEngine;
    this.#all = new BroadcastChannel(this.#base);
    this.#own = new BroadcastChannel(`${this.#base}/${this.#tab}`);
    this.#own.onmessage = ({ data }) => (data.welcome ? this.#meet(data.host) : data.host === this.#host && this.#receive(data));
    this.#enter().catch((error) => this.#fail(error));
  }

  /** As a worker's, with the messages of `Connection`. */
  postMessage(message) {
    if (message.end) {
      this.terminate();
      this.onmessage({ data: { ended: true } });
    } else if (message.cancel || message.taken) {
      const asked = this.#asked.get(message.id);
      if (asked && message.cancel) asked.isCancelled = true;
      this.#send(message);
    } else {
      const asked = { message, isBegun: false, isCancelled: false, nHosts: 0 };
      this.#asked.set(message.id, asked);
      if (this.#host > 0) this.#ask(asked);
    }
  }

  /** Asks no more. A worker that this page hosts goes on for the other tabs. */
  terminate() {
    this.#end.abort();
    this.#all.close();
    this.#own.close();
    this.#host = 0;
  }

  async #enter() {
    const { signal } = this.#end;
    // Held as long as this tab asks: so the worker learns when it has gone.
    await new Promise((resolve, reject) => {
      const hold = () => {
        resolve();
        if (signal.aborted) return undefined;
        return new Promise((leave) => signal.addEventListener('abort', leave, { once: true }));
      };
      navigator.locks.request(`${this.#base}/${this.#tab}`, hold).catch(reject);
    });
    if (signal.aborted) return;
    const greet = () => this.#all.postMessage({ tab: this.#tab });
    this.#all.onmessage = ({ data }) => data.host && greet();
    greet();
    while (!signal.aborted) {
      if (canHost()) await navigator.locks.request(this.#base, { signal }, () => this.#beHost());
      else await navigator.locks.request(this.#base, { signal, mode: 'shared' }, () => this.#expectOthers());
    }
  }

  /** Hosts the worker until no tab asks any more, or the worker has ended. */
  async #beHost() {
    const connection = new Connection(this.#startWorker, () => {});
    try {
      await this.#startEngine(connection);
    } catch (error) {
      connection.close();
      throw error;
    }
    if (!this.#end.signal.aborted) {
      const place = { base: this.#base, host: Math.max(Date.now(), this.#host + 1), first: this.#tab };
      // Who asked what has ended it was told; the others go on with the next host.
      await connection.call('serve', place).catch((error) => console.warn(`tierflow: ${error.message}`));
    }
    connection.close();
  }

  /** Nobody has the lock, so there is a host only if somebody waits for it. */
  async #expectOthers() {
    const { pending } = await navigator.locks.query();
    if (pending.some(({ name, mode }) => name === this.#base && mode === 'exclusive')) return;
    throw new TierflowError('no page is open whose engine could answer: here no worker can be started; open one with an engine of the same `shared`');
  }

  /** Asks a new host what is not answered yet. One that is older ends just now. */
  #meet(host) {
    if (host <= this.#host) return;
    this.#host = host;
    for (const asked of [...this.#asked.values()]) {
      if (asked.isCancelled) this.#refuse(asked, abortError());
      else if (asked.isBegun || asked.nHosts === MOST_HOSTS) this.#refuse(asked, lost());
      else this.#ask(asked);
    }
  }

  #ask(asked) {
    asked.nHosts += 1;
    this.#send(asked.message);
  }

  #send(message) {
    if (this.#host > 0) this.#own.postMessage({ ...message, to: this.#host });
  }

  #receive(data) {
    const asked = this.#asked.get(data.id);
    if (asked && data.step !== undefined) asked.isBegun = true;
    if (!data.event) this.#asked.delete(data.id);
    this.onmessage({ data });
  }

  #refuse({ message: { id } }, error) {
    this.#asked.delete(id);
    this.onmessage({ data: { id, error: toPlain(error) } });
  }

  #fail(error) {
    if (this.#end.signal.aborted) return;
    this.onerror(new ErrorEvent('error', { error, message: error.message, cancelable: true }));
  }
}

function lost() {
  return new HostLostError('The tab whose engine answered was closed, or its engine ended; ask again, and another tab takes its place');
}
