// A file of this machine by its address, file:///…, where the package runs outside of a browser, as in Deno. Read synchronously.

import { InvalidFileError } from '../errors.js';
import { truncated } from './file.js';

/** Bytes of one read. They are copied on, since not every memory of wasm can be read into. */
const MAX_READ = 4 << 20;

/** Node's module, which Deno has, too; bundlers do not see that it is asked for. Browsers have none. */
const fs = globalThis.process?.getBuiltinModule?.('node:fs') ?? null;

/** Whether files of this machine can be read here. */
export const hasDisk = fs !== null;

/** The whole of a file of this machine. */
export function bytesAt(address) {
  try {
    return fs.readFileSync(new URL(address));
  } catch (error) {
    throw new InvalidFileError(`${address}: cannot be read: ${error.message}`);
  }
}

/** The engine's source over such a file. */
export class DiskSource {
  #descriptor;

  /** @param {string} name @param {string} url */
  constructor(name, url) {
    try {
      this.#descriptor = fs.openSync(new URL(url), 'r');
    } catch (error) {
      throw new InvalidFileError(`${name}: cannot be opened: ${error.message}`);
    }
    this.name = name;
    this.size = fs.fstatSync(this.#descriptor).size;
  }

  /** Fills `into` from `offset`. */
  read(offset, into) {
    const bytes = new Uint8Array(Math.min(MAX_READ, into.length));
    for (let done = 0; done < into.length; ) {
      const n = fs.readSync(this.#descriptor, bytes, 0, Math.min(bytes.length, into.length - done), offset + done);
      if (n === 0) throw truncated(this.name, offset + done, offset + into.length);
      into.set(bytes.subarray(0, n), done);
      done += n;
    }
  }

  close() {
    fs.closeSync(this.#descriptor);
  }
}
