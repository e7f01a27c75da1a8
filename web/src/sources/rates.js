// Measured rates of this machine, kept in the browser's storage for the next visit: those of another adapter, browser or version of
// the package, and what is no whole entry, count as nothing.

import { replaceFile } from './journal.js';

const SCHEMA = 'tierflow.rates/1';
const FILE = 'tierflow-rates.json';

export class Rates {
  #folder;
  #machine;
  /** What was read or written last. */
  #seen = null;

  /** @param {FileSystemDirectoryHandle | null} folder `null` where there is no storage @param {string} machine whose rates they are */
  constructor(folder, machine) {
    this.#folder = folder;
    this.#machine = machine;
  }

  /** Those of this browser and its adapter. @param {string} version of the package */
  static async open(version) {
    const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
    const { vendor = '', architecture = '', device = '', description = '' } = adapter?.info ?? {};
    const folder = await navigator.storage?.getDirectory?.().catch(() => null);
    return new Rates(folder ?? null, [version, navigator.userAgent, vendor, architecture, device, description].join(' | '));
  }

  /** What is stored, where that is not what is known; `null` otherwise. */
  async read() {
    try {
      const file = await (await this.#folder.getFileHandle(FILE)).getFile();
      const { schema, machine, rates } = JSON.parse(await file.text());
      if (schema !== SCHEMA || machine !== this.#machine || typeof rates !== 'string' || rates === this.#seen) return null;
      return (this.#seen = rates);
    } catch {
      return null;
    }
  }

  /** Stores `rates`, unless they are stored; says whether they are others. A storage that takes nothing is no error. */
  async write(rates) {
    if (rates === undefined || rates === this.#seen) return false;
    this.#seen = rates;
    try {
      await replaceFile(this.#folder, FILE, JSON.stringify({ schema: SCHEMA, machine: this.#machine, rates }));
    } catch {
      // The next visit measures again.
    }
    return true;
  }
}
