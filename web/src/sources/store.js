// Models kept in the browser's storage: downloaded once, resumed where a download broke off, streamed from there.
// Each has a folder of its own with the file and its journal. One tab downloads at a time.

import { FileBusyError, ServerError, StorageFullError, abortError } from '../errors.js';
import { parseContentRange, statusError, versionOf } from './http.js';
import { readEntry, writeEntry } from './journal.js';
import { onceFree, openStored } from './opfs.js';

const FOLDER = 'tierflow-models';
const DATA = 'model';
/** The journal vouches for the bytes of a download in steps of so many. */
const STEP = 32 << 20;
/** How long a stored model waits for its server to say that it is still the same. */
const CHECK_MS = 4000;

/** The store over a folder of OPFS. `quota()` resolves to `{usage, quota}`. */
export class Store {
  #root;
  #quota;

  /** @param {FileSystemDirectoryHandle} root @param {() => Promise<{usage: number, quota: number}>} quota */
  constructor(root, quota) {
    this.#root = root;
    this.#quota = quota;
  }

  /** Whether this browser gives its pages what a store needs: on plain http://, but from localhost, none does. */
  static get isThere() {
    return Boolean(navigator.storage?.getDirectory && navigator.locks && crypto.subtle);
  }

  /** The store of this browser. */
  static async open() {
    if (!Store.isThere) {
      const reason = globalThis.isSecureContext === false ? 'on plain http://; open it by https:// or from localhost' : 'here, as in some private windows';
      throw new ServerError(`A page has no storage of its own (OPFS) ${reason}. Without \`keep\` a model is read from its server, or choose a local file`);
    }
    const root = await navigator.storage.getDirectory();
    return new Store(await root.getDirectoryHandle(FOLDER, { create: true }), () => navigator.storage.estimate());
  }

  /** Every entry with its key, and what the storage holds. Folders without a believable journal are cleared away. */
  async list() {
    const models = [];
    for await (const [key, folder] of this.#root.entries()) {
      const entry = await readEntry(folder);
      if (entry) models.push({ key, name: entry.name, url: entry.url, size: entry.size, done: entry.done, complete: entry.complete });
      else await this.#exclusive(key, '', () => this.#removeFolder(key)).catch(() => {});
    }
    const { usage = 0, quota = 0 } = await this.#quota();
    return { models, usage, quota };
  }

  /** Removes an entry. Fails where a tab downloads or, in some browsers, reads it. */
  async remove(key) {
    await this.#exclusive(key, key, () => this.#removeFolder(key));
  }

  /** Removes what is stored of `url`. */
  async forget(url) {
    await this.remove(await keyOf(url));
  }

  /** Whether the whole of `url` is stored. */
  async has(url) {
    return (await this.#entry(url))?.complete ?? false;
  }

  /**
   * Whether a stored file is what its server has now. Without an answer it is taken to be.
   * @param {string} url @param {AbortSignal} [signal]
   */
  async isCurrent(url, signal) {
    const entry = await this.#entry(url);
    if (!entry?.complete) return false;
    const timeout = AbortSignal.timeout(CHECK_MS);
    const head = await fetch(url, { method: 'HEAD', cache: 'no-store', signal: signal ? AbortSignal.any([signal, timeout]) : timeout }).catch(() => null);
    if (signal?.aborted) throw abortError();
    if (!head?.ok) return true;
    const length = head.headers.get('Content-Length');
    const mark = versionOf(head).value;
    return (length === null || Number(length) === entry.size) && (mark === null || entry.mark === null || mark === entry.mark);
  }

  /** The stored file of `url` as a source, which keeps it from being changed. */
  async source(url) {
    const { name, size } = await this.#entry(url);
    return openStored(await this.#data(url), name, size);
  }

  /** The stored file of `url` as it is now. */
  async file(url) {
    return (await this.#data(url)).getFile();
  }

  /**
   * Downloads `url`, from where an earlier download broke off if the server has still the same file.
   * @param {{url: string, name: string}} model
   * @param {{signal?: AbortSignal, onProgress?: (done: number, total: number | null) => void}} [options]
   */
  async download({ url, name }, { signal, onProgress = () => {} } = {}) {
    const key = await keyOf(url);
    await this.#exclusive(key, name, async () => {
      const download = new Download({ url, name }, this.#quota);
      try {
        await download.open(await this.#root.getDirectoryHandle(key, { create: true }));
        await download.run(signal, onProgress);
      } catch (error) {
        throw await this.#afterFault(error, download, key);
      } finally {
        download.close();
      }
    });
  }

  /** What was stored safely stays for the next time, except where nothing was, or no room is left for the rest. */
  async #afterFault(error, download, key) {
    const isFull = error.name === 'QuotaExceededError' || error instanceof StorageFullError;
    const isOurs = download.isOpen;
    download.close();
    if (isOurs && (isFull || download.done === 0)) await this.#removeFolder(key);
    if (error.name !== 'QuotaExceededError') return error;
    const { usage = 0, quota = 0 } = await this.#quota();
    return storageFull(download.entry.name, download.entry.size, Math.max(0, quota - usage));
  }

  async #entry(url) {
    const folder = await this.#root.getDirectoryHandle(await keyOf(url)).catch(() => null);
    return folder && readEntry(folder);
  }

  async #data(url) {
    return (await this.#root.getDirectoryHandle(await keyOf(url))).getFileHandle(DATA);
  }

  #removeFolder(key) {
    const remove = () => this.#root.removeEntry(key, { recursive: true });
    return onceFree(remove, key).catch((error) => {
      if (error.name !== 'NotFoundError') throw error;
    });
  }

  /** Runs `work` while no other tab downloads or removes the same entry. */
  #exclusive(key, name, work) {
    return navigator.locks.request(`${FOLDER}/${key}`, { ifAvailable: true }, (lock) => {
      if (!lock) throw new FileBusyError(`${name}: another tab is downloading this model; wait until it is done, or close that tab`);
      return work();
    });
  }
}

/** One download into a file. */
class Download {
  #folder = null;
  #access = null;
  #quota;

  constructor({ url, name }, quota) {
    this.#quota = quota;
    this.entry = { url, name, size: null, mark: null, done: 0, complete: false };
  }

  /** Bytes that are safely stored. */
  get done() {
    return this.entry.done;
  }

  /** Whether the file is there and nobody else has it. */
  get isOpen() {
    return this.#access !== null;
  }

  async open(folder) {
    const data = await folder.getFileHandle(DATA, { create: true });
    this.#folder = folder;
    this.#access = await onceFree(() => data.createSyncAccessHandle(), this.entry.name);
  }

  close() {
    this.#access?.close();
    this.#access = null;
  }

  async run(signal, onProgress) {
    const earlier = await readEntry(this.#folder);
    if (earlier && !earlier.complete && earlier.mark && earlier.done > 0 && earlier.done <= this.#access.getSize()) this.entry = earlier;
    if (this.done > 0 && this.done === this.entry.size) return this.#finish();
    const response = await this.#ask(signal);
    await this.#checkRoom();
    this.#access.truncate(this.entry.done);
    await writeEntry(this.#folder, this.entry);
    onProgress(this.done, this.entry.size);
    try {
      await this.#receive(response, onProgress);
    } finally {
      await response.body.cancel().catch(() => {});
    }
    await this.#finish();
  }

  /** The server's answer from `done` on; from the beginning where the file there is another one by now. */
  async #ask(signal) {
    const { url, mark } = this.entry;
    const headers = this.done > 0 ? { Range: `bytes=${this.done}-` } : {};
    const response = await fetch(url, { headers, cache: 'no-store', signal }).catch((error) => {
      if (signal?.aborted) throw abortError();
      throw new ServerError(`${url}: no answer (${error.message}); check the address, and that the server allows other sites to read it (CORS)`, { url });
    });
    if (this.done > 0) {
      const range = parseContentRange(response.headers.get('Content-Range'));
      const goesOn = response.status === 206 && range?.first === this.done && range.total === this.entry.size && versionOf(response).value === mark;
      if (goesOn) return response;
      this.entry = { ...this.entry, size: null, mark: null, done: 0 };
      if (response.status !== 200) {
        await response.body?.cancel();
        return this.#ask(signal);
      }
    }
    if (response.status !== 200) throw statusError(url, response.status);
    const length = response.headers.get('Content-Length');
    this.entry.size = length !== null && !response.headers.has('Content-Encoding') ? Number(length) : null;
    this.entry.mark = versionOf(response).value;
    return response;
  }

  async #checkRoom() {
    if (this.entry.size === null) return;
    const { usage = 0, quota = Infinity } = await this.#quota();
    const missing = this.entry.size - this.#access.getSize();
    if (missing > quota - usage) throw storageFull(this.entry.name, missing, Math.max(0, quota - usage));
  }

  async #receive(response, onProgress) {
    const { url, size } = this.entry;
    let received = this.done;
    const reader = response.body.getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        if (size !== null && received + value.length > size) {
          throw new ServerError(`${url}: the server promised ${size} bytes and sends more; use another server`, { url });
        }
        received += this.#access.write(value, { at: received });
        if (received - this.done >= STEP) await this.#vouchFor(received);
        onProgress(received, size);
      }
    } catch (error) {
      await this.#vouchFor(received).catch(() => {});
      if (['AbortError', 'QuotaExceededError', 'ServerError'].includes(error.name)) throw error;
      throw new ServerError(`${url}: the connection dropped after ${received} of ${size ?? 'unknown'} bytes; load again to go on from there`, { url });
    } finally {
      reader.releaseLock();
    }
    await this.#vouchFor(received);
  }

  async #vouchFor(received) {
    this.#access.flush();
    this.entry.done = received;
    await writeEntry(this.#folder, this.entry);
  }

  async #finish() {
    const { url, size, done } = this.entry;
    if (size !== null && done !== size) {
      throw new ServerError(`${url}: the download ended after ${done} of ${size} bytes; load again to go on from there`, { url });
    }
    if (done === 0) throw new ServerError(`${url}: the server sends an empty file; check the address`, { url });
    this.entry = { ...this.entry, size: done, complete: true };
    await writeEntry(this.#folder, this.entry);
  }
}

/** `needed` is `null` where it is not known yet. Browsers estimate what is left, and may refuse a write that should fit. */
function storageFull(name, needed, available) {
  const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const left = needed !== null && available < needed ? `has ${mib(available)} left` : 'takes no more';
  const advice = 'delete a stored model, free disk space, or choose a local file, which needs no storage';
  return new StorageFullError(`${name}: needs ${needed === null ? 'more' : mib(needed)} of the browser's storage, which ${left}; ${advice}`, { needed, available });
}

/** The folder's name for an address: readable, and its own. */
async function keyOf(url) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(url)));
  const hash = [...digest.subarray(0, 8)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  const last = new URL(url).pathname.split('/').pop() || 'model';
  return `${last.replace(/[^\w.-]/g, '_').slice(-80)}-${hash}`;
}
