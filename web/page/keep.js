// The browser's small storage for texts. Where a browser denies it to pages, what is kept lives as long as the page does.

/** Keeps texts by name, as far as the API of `Storage` is used here. */
class Memory {
  #values = new Map();

  get length() {
    return this.#values.size;
  }

  key(index) {
    return [...this.#values.keys()][index] ?? null;
  }

  getItem(key) {
    return this.#values.get(key) ?? null;
  }

  setItem(key, value) {
    this.#values.set(key, value);
  }

  removeItem(key) {
    this.#values.delete(key);
  }
}

function browserStorage() {
  try {
    return globalThis.localStorage ?? new Memory();
  } catch {
    return new Memory();
  }
}

/** The page's storage. */
export const storage = browserStorage();

/** Keeps a text that may as well be lost, where there is room for it. */
export function keep(key, value) {
  try {
    storage.setItem(key, value);
  } catch {
    // There is none.
  }
}
