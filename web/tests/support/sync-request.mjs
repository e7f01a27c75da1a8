// `XMLHttpRequest` as a worker of a browser has it, as far as the sources use it: synchronous, for bytes. Node has none;
// a thread fetches while this one waits.

import { MessageChannel, Worker, receiveMessageOnPort } from 'node:worker_threads';

const FETCHER = `
  const { parentPort, workerData: signal } = require('node:worker_threads');
  parentPort.on('message', async ({ url, headers, port }) => {
    try {
      const response = await fetch(url, { headers });
      const body = await response.arrayBuffer();
      port.postMessage({ status: response.status, headers: [...response.headers], body });
    } catch (error) {
      port.postMessage({ reason: String(error) });
    }
    Atomics.store(signal, 0, 1);
    Atomics.notify(signal, 0);
  });
`;

const signal = new Int32Array(new SharedArrayBuffer(4));
const fetcher = new Worker(FETCHER, { eval: true, workerData: signal });
fetcher.unref();

export class SyncRequest {
  #url;
  #headers = {};
  #answer = null;

  open(method, url, isAsync) {
    if (method !== 'GET' || isAsync) throw new TypeError('only synchronous GET is known here');
    this.#url = url;
  }

  setRequestHeader(name, value) {
    this.#headers[name] = value;
  }

  send() {
    const { port1, port2 } = new MessageChannel();
    Atomics.store(signal, 0, 0);
    fetcher.postMessage({ url: this.#url, headers: this.#headers, port: port2 }, [port2]);
    Atomics.wait(signal, 0, 0);
    const { message } = receiveMessageOnPort(port1);
    port1.close();
    if (message.reason) throw new DOMException(message.reason, 'NetworkError');
    this.#answer = message;
  }

  get status() {
    return this.#answer.status;
  }

  get response() {
    return this.#answer.body;
  }

  getResponseHeader(name) {
    return this.#answer.headers.find(([key]) => key === name.toLowerCase())?.[1] ?? null;
  }
}
