// A model in the browser's own storage (OPFS), read synchronously: only in a worker.

import { FileBusyError, InvalidFileError } from '../errors.js';

/**
 * Opens a stored file for reading. Several tabs may read one file where the browser knows read-only handles;
 * elsewhere the first tab has it alone.
 * @param {FileSystemFileHandle} handle @param {string} name @param {number} size that the journal vouches for
 */
export async function openStored(handle, name, size) {
  let access;
  try {
    access = await handle.createSyncAccessHandle({ mode: 'read-only' });
  } catch (error) {
    throw busyOr(error, name);
  }
  const found = access.getSize();
  if (found !== size) {
    access.close();
    throw new InvalidFileError(`${name}: the stored file has ${found} bytes, where ${size} were downloaded; delete it and load it again`);
  }
  return new StoredSource(name, size, access);
}

/** What stands behind a handle that could not be had. */
export function busyOr(error, name) {
  if (error.name !== 'NoModificationAllowedError') return error;
  return new FileBusyError(`${name}: the stored model is in use, here or in another tab; close the other tab, or wait until it is done`);
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
