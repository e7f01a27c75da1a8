// The worker's end of an engine that tabs share: each asks over a channel of its own, and is there as long as it holds a lock of the
// same name. `shared.js` is the tabs' end.

import { Asker } from './calls.js';

/** Answers tabs until none is left. */
export class Serving {
  #base;
  #host;
  #answer;
  #all;
  /** Channels and askers, by the tabs' names. */
  #tabs = new Map();
  #settle;

  /** Settles when no tab is left, or with the error after which nothing can be answered. */
  ended = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));

  /**
   * @param {{base: string, host: number, first: string}} place what all channels and locks begin with, which host this is, and the tab
   *   that has started it
   * @param {(method: string, args: object, call: object) => Promise<any>} answer
   */
  constructor({ base, host, first }, answer) {
    this.#base = base;
    this.#host = host;
    this.#answer = answer;
    this.#all = new BroadcastChannel(base);
    this.#all.onmessage = ({ data }) => data.tab && this.#welcome(data.tab);
    this.#welcome(first);
    this.#all.postMessage({ host });
  }

  /** Nothing can be answered any more. */
  fail(error) {
    this.close();
    this.#settle.reject(error);
  }

  #welcome(tab) {
    if (!this.#tabs.has(tab)) this.#tabs.set(tab, this.#enter(tab));
    this.#tabs.get(tab).channel.postMessage({ host: this.#host, welcome: true });
  }

  #enter(tab) {
    const place = `${this.#base}/${tab}`;
    const channel = new BroadcastChannel(place);
    const asker = new Asker((message) => channel.postMessage({ ...message, host: this.#host }), this.#answer);
    channel.onmessage = ({ data }) => data.to === this.#host && asker.hear(data);
    void navigator.locks.request(place, () => this.#leave(tab));
    return { channel, asker };
  }

  #leave(tab) {
    const left = this.#tabs.get(tab);
    if (!left) return;
    left.asker.leave();
    left.channel.close();
    this.#tabs.delete(tab);
    if (this.#tabs.size > 0) return;
    this.close();
    this.#settle.resolve();
  }

  /** Asks nobody to wait any longer for what was asked. */
  close() {
    this.#all.close();
    for (const { channel, asker } of this.#tabs.values()) {
      asker.leave();
      channel.close();
    }
    this.#tabs.clear();
  }
}
