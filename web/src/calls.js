// The worker's end of the line: who asks it, and what is asked and not answered yet.

import { abortError, toPlain } from './errors.js';
import { inTask } from './task.js';

/** A request in progress: whether it is still wanted, and the messages that who asks gets about it. */
export class Call {
  #id;
  #post;
  #controller = new AbortController();
  #nSteps = 0;
  #nTaken = 0;
  #wake = () => {};
  isAnswered = false;

  /** @param {number} id @param {(message: object) => void} post */
  constructor(id, post) {
    this.#id = id;
    this.#post = post;
  }

  get signal() {
    return this.#controller.signal;
  }

  cancel() {
    this.#controller.abort();
    this.#wake();
  }

  tell(event) {
    this.#post({ id: this.#id, event });
  }

  /**
   * Reports a step; resolves to whether another is wanted. Who asks may be one step behind, while the next is made, and no more:
   * so it can end the work within a step, however fast steps come. What it says meanwhile is heard before.
   */
  async step(event) {
    this.#nSteps += 1;
    this.#post({ id: this.#id, event, step: this.#nSteps });
    await new Promise(inTask);
    while (!this.signal.aborted && this.#nTaken < this.#nSteps - 1) await new Promise((resolve) => (this.#wake = resolve));
    return !this.signal.aborted;
  }

  /** Who asks has taken so many steps. */
  taken(nTaken) {
    this.#nTaken = nTaken;
    this.#wake();
  }
}

/** Somebody who asks: the worker's page, or a tab of those that share it. */
export class Asker {
  #post;
  #answer;
  #calls = new Map();

  /** @param {(message: object) => void} post @param {(method: string, args: object, call: Call) => Promise<any>} answer */
  constructor(post, answer) {
    this.#post = post;
    this.#answer = answer;
  }

  hear({ id, method, args, cancel, taken }) {
    if (cancel) this.#calls.get(id)?.cancel();
    else if (taken) this.#calls.get(id)?.taken(taken);
    else this.#ask(id, method, args);
  }

  /** Nobody waits for its answers any more. */
  leave() {
    this.#post = () => {};
    this.#calls.forEach((call) => call.cancel());
  }

  async #ask(id, method, args) {
    const call = new Call(id, (message) => this.#post(message));
    this.#calls.set(id, call);
    try {
      const value = await this.#answer(method, args, call);
      // What was stopped halfway has an answer too; its caller gets an error that says that it was stopped.
      this.#post(call.signal.aborted ? { id, error: toPlain(Object.assign(abortError(), { partial: value })) } : { id, value });
    } catch (error) {
      this.#post({ id, error: toPlain(call.signal.aborted ? abortError() : error) });
    } finally {
      call.isAnswered = true;
      this.#calls.delete(id);
    }
  }
}
