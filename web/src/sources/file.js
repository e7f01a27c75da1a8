// A file that the user chose, read synchronously: only in a worker.

import { InvalidFileError } from '../errors.js';

/** Bytes that one read of the browser brings; more would only make a larger copy. */
const MAX_READ = 16 << 20;

/** The error of a file `name` that ends at byte `end`, where `expected` were. */
export function truncated(name, end, expected) {
  return new InvalidFileError(`${name}: ends at byte ${end}, where ${expected} were expected; the file is truncated`);
}

/** Opens a `File`. Where none can be read synchronously, outside of browsers, all of it is read now. */
export async function openFile(name, file) {
  return typeof FileReaderSync === 'function' ? new FileSource(name, file) : new BytesSource(name, new Uint8Array(await file.arrayBuffer()));
}

/** The engine's source over a `File`. */
export class FileSource {
  #file;
  #reader = new FileReaderSync();

  /** @param {string} name @param {File} file */
  constructor(name, file) {
    this.name = name;
    this.size = file.size;
    this.#file = file;
  }

  /** Fills `into` from `offset`. */
  read(offset, into) {
    for (let done = 0; done < into.length; ) {
      const end = Math.min(done + MAX_READ, into.length);
      const bytes = this.#slice(offset + done, offset + end);
      into.set(bytes, done);
      done = end;
    }
  }

  close() {}

  #slice(begin, end) {
    let bytes;
    try {
      bytes = new Uint8Array(this.#reader.readAsArrayBuffer(this.#file.slice(begin, end)));
    } catch {
      throw new InvalidFileError(`${this.name}: the file was changed, moved or removed after it was chosen; choose it again`);
    }
    if (bytes.length !== end - begin) {
      throw truncated(this.name, begin + bytes.length, end);
    }
    return bytes;
  }
}

/** The same over bytes that are here. */
class BytesSource {
  #bytes;

  constructor(name, bytes) {
    this.name = name;
    this.size = bytes.length;
    this.#bytes = bytes;
  }

  read(offset, into) {
    const found = this.#bytes.subarray(offset, offset + into.length);
    if (found.length !== into.length) throw truncated(this.name, this.size, offset + into.length);
    into.set(found);
  }

  close() {}
}
