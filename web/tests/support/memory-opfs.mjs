// The origin-private file system in memory, as far as the store uses it: folders, files, exclusive handles, a quota.

export class MemoryFolder {
  #entries = new Map();
  kind = 'directory';

  constructor(disk = { quota: Infinity, used: 0 }) {
    this.disk = disk;
  }

  async getDirectoryHandle(name, { create = false } = {}) {
    if (!this.#entries.has(name)) {
      if (!create) throw new DOMException(name, 'NotFoundError');
      this.#entries.set(name, new MemoryFolder(this.disk));
    }
    return this.#entries.get(name);
  }

  async getFileHandle(name, { create = false } = {}) {
    if (!this.#entries.has(name)) {
      if (!create) throw new DOMException(name, 'NotFoundError');
      this.#entries.set(name, new MemoryFile(this.disk));
    }
    return this.#entries.get(name);
  }

  async removeEntry(name) {
    if (!this.#entries.has(name)) throw new DOMException(name, 'NotFoundError');
    const entry = this.#entries.get(name);
    if (entry.isLocked) throw new DOMException('locked', 'NoModificationAllowedError');
    entry.free();
    this.#entries.delete(name);
  }

  get isLocked() {
    return [...this.#entries.values()].some((entry) => entry.isLocked);
  }

  free() {
    for (const entry of this.#entries.values()) entry.free();
  }

  async *entries() {
    yield* [...this.#entries];
  }
}

class MemoryFile {
  kind = 'file';
  isLocked = false;
  #readers = 0;
  #room;
  #size = 0;

  constructor(disk) {
    this.disk = disk;
    this.#room = new Uint8Array(0);
  }

  get bytes() {
    return this.#room.subarray(0, this.#size);
  }

  free() {
    this.resize(0);
  }

  /** Room grows by doubling, as downloads write in small steps. */
  resize(size) {
    const growth = size - this.#size;
    if (this.disk.used + growth > this.disk.quota) throw new DOMException('full', 'QuotaExceededError');
    this.disk.used += growth;
    if (size > this.#room.length) {
      const room = new Uint8Array(Math.max(size, this.#room.length * 2));
      room.set(this.bytes);
      this.#room = room;
    }
    this.#size = size;
  }

  async getFile() {
    return new Blob([this.bytes]);
  }

  async createWritable() {
    let text = '';
    return {
      write: async (more) => void (text += more),
      close: async () => {
        const bytes = new TextEncoder().encode(text);
        this.resize(bytes.length);
        this.bytes.set(bytes);
      },
    };
  }

  async createSyncAccessHandle({ mode = 'readwrite' } = {}) {
    const isShared = mode === 'read-only';
    if ((this.isLocked && !(isShared && this.#readers > 0)) || (this.#readers > 0 && !isShared)) {
      throw new DOMException('locked', 'NoModificationAllowedError');
    }
    this.isLocked = true;
    if (isShared) this.#readers += 1;
    return {
      getSize: () => this.bytes.length,
      truncate: (size) => this.resize(size),
      flush: () => {},
      write: (chunk, { at }) => {
        if (at + chunk.length > this.bytes.length) this.resize(at + chunk.length);
        this.bytes.set(chunk, at);
        return chunk.length;
      },
      read: (into, { at }) => {
        const part = this.bytes.subarray(at, at + into.length);
        into.set(part);
        return part.length;
      },
      close: () => {
        if (isShared) this.#readers -= 1;
        this.isLocked = this.#readers > 0;
      },
    };
  }
}

/** `navigator.locks`, as far as the store uses it. */
export class MemoryLocks {
  #held = new Set();

  async request(name, { ifAvailable }, work) {
    if (!ifAvailable) throw new TypeError('waiting for locks is not known here');
    if (this.#held.has(name)) return work(null);
    this.#held.add(name);
    try {
      return await work({ name });
    } finally {
      this.#held.delete(name);
    }
  }
}
