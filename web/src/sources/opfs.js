// A model in the browser's own storage (OPFS), read synchronously: only in a worker.

import { FileBusyError, InvalidFileError } from '../errors.js';

/** A worker that was ended gives its files back a little later: who finds one in use asks again so often, at this distance. */
const TRIES = 30;
const TRY_MS = 100;

/**
 * What `work` yields on a file that somebody may still hold.
 * @template T @param {() => Promise<T>} work @param {string} name the model, for the error of one that stays in use
 * @returns {Promise<T>}
 */
export async function onceFree(work, name) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await work();
    } catch (error) {
      if (error.name !== 'NoModificationAllowedError') throw error;
      if (attempt === TRIES) {
        throw new FileBusyError(`${name}: the stored model is in use, here or in another tab; close the other tab, or wait until it is done`);
      }
      await new Promise((resolve) => setTimeout(resolve, TRY_MS));
    }
  }
}

/**
 * Opens a stored file for reading. Several tabs may read one file where the browser knows read-only handles;
 * elsewhere the first tab has it alone.
 * @param {FileSystemFileHandle} handle @param {string} name @param {number} size that the journal vouches for
 */
export async function openStored(handle, name, size) {
  const access = await onceFree(() => handle.createSyncAccessHandle({ mode: 'read-only' }), name);
  const found = access.getSize();
  if (found !== size) {
    access.close();
    throw new InvalidFileError(`${name}: the stored file has ${found} bytes, where ${size} were downloaded; delete it and load it again`);
  }
  return new StoredSource(name, size, access);
}

/** The engine's source over a stored file. */
class StoredSource {
  #access;

  constructor(name, size, access) {
    this.name = name;
    this.size = size;
    this.#access = access;
  }

  /** Fills `into` from `offset`. */
  read(offset, into) {
    const n = this.#access.read(into, { at: offset });
    if (n !== into.length) throw new InvalidFileError(`${this.name}: the stored file ends at byte ${offset + n}; delete it and load it again`);
  }

  close() {
    this.#access.close();
  }
}
