// The conversation: send, stop, regenerate, and how fast it went. Text from the model goes in as text, never as markup.

import { byId, element, showFault, showFigures } from './elements.js';
import { bytes, duration, tokensPerSec } from './format.js';

export class ChatView {
  isLoaded = false;
  #engine;
  #onDeviceLost;
  #onBusy;
  #messages = [];
  #stop = null;
  #gbPerToken = null;
  #figures = [];
  #memory = [];

  /**
   * @param {{engine: object, onBusy: (isBusy: boolean) => void, onDeviceLost: (error: Error) => void}} parts
   */
  constructor({ engine, onBusy, onDeviceLost }) {
    this.#engine = engine;
    this.#onBusy = onBusy;
    this.#onDeviceLost = onDeviceLost;
    byId('ask').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#send();
    });
    byId('prompt').addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    byId('stop').addEventListener('click', () => this.#stop?.abort());
    byId('regenerate').addEventListener('click', () => this.#regenerate());
    byId('clear').addEventListener('click', () => this.#clear());
  }

  /** A model is there, or not; what was said stays. */
  setLoaded(loaded) {
    this.isLoaded = loaded !== null;
    if (loaded) {
      byId('chat').hidden = false;
      showFault(byId('chat-fault'));
      byId('prompt').focus();
    }
    this.#update();
  }

  /** What the timeline measured, for the figures. */
  setBytesPerToken(size) {
    this.#gbPerToken = size;
    this.#show();
  }

  #send() {
    const content = byId('prompt').value.trim();
    if (!content || this.#stop || !this.isLoaded) return;
    byId('prompt').value = '';
    this.#say({ role: 'user', content });
    this.#answer();
  }

  #regenerate() {
    if (this.#stop) return;
    if (this.#messages.at(-1)?.role === 'assistant') {
      this.#messages.pop();
      byId('messages').lastElementChild.remove();
    }
    this.#answer();
  }

  #clear() {
    this.#messages = [];
    this.#figures = [];
    byId('messages').replaceChildren();
    showFault(byId('chat-fault'));
    this.#show();
    this.#update();
  }

  async #answer() {
    const controller = (this.#stop = new AbortController());
    const request = { messages: this.#messages.map(({ role, content }) => ({ role, content })), ...settings() };
    const answer = this.#say({ role: 'assistant', content: '' });
    const meter = new Meter();
    const spoken = new Spoken(byId('spoken'));
    showFault(byId('chat-fault'));
    this.#update();
    this.#onBusy(true);
    let usage = null;
    try {
      const stream = await this.#engine.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } }, { signal: controller.signal });
      for await (const chunk of stream) {
        usage = chunk.usage ?? usage;
        const text = chunk.choices[0]?.delta.content;
        if (!text) continue;
        meter.count();
        answer.add(text);
        spoken.add(text);
        this.#measure(meter, null);
      }
    } catch (error) {
      usage = error.usage ?? null;
      this.#fail(error, answer);
    } finally {
      spoken.end();
      this.#stop = null;
      this.#onBusy(false);
      this.#measure(meter, usage);
      await this.#remember();
      this.#update();
    }
  }

  #fail(error, answer) {
    if (error.name === 'AbortError') return;
    if (error.name === 'DeviceLostError') this.#onDeviceLost(error);
    else showFault(byId('chat-fault'), error);
    if (answer.message.content === '') {
      this.#messages.pop();
      answer.node.remove();
    }
  }

  /** Adds a message; its text can grow. */
  #say(message) {
    this.#messages.push(message);
    const text = document.createTextNode(message.content);
    const title = message.role === 'user' ? 'You' : (this.#engine.loaded?.name ?? 'Model');
    const node = element('article', { class: message.role }, element('h3', {}, title), text);
    const list = byId('messages');
    list.append(node);
    list.scrollTop = list.scrollHeight;
    const add = (more) => {
      const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
      message.content += more;
      text.appendData(more);
      if (isAtEnd) list.scrollTop = list.scrollHeight;
    };
    return { message, node, add };
  }

  #measure(meter, usage) {
    const context = this.#engine.loaded?.plan.ctx_size;
    this.#figures = [
      ['Decode', meter.rate ? tokensPerSec(meter.rate) : '…'],
      ['First token after', meter.ttft ? duration(meter.ttft) : '…'],
      ['Tokens', String(meter.n)],
      ['Context', context ? `${usage?.total_tokens ?? '…'} of ${context}` : '…'],
    ];
    this.#show();
  }

  /** Peaks of memory, which only the engine knows. */
  async #remember() {
    try {
      this.#memory = memoryFigures(await this.#engine.memory());
    } catch {
      this.#memory = [];
    }
    this.#show();
  }

  #show() {
    const moved = this.#gbPerToken === null ? [] : [['Moved per token', `${(this.#gbPerToken / 1e9).toFixed(3)} GB`]];
    showFigures(byId('speed'), this.#figures.length > 0 ? [...this.#figures, ...moved, ...this.#memory] : []);
  }

  #update() {
    const isBusy = this.#stop !== null;
    const hadStop = document.activeElement === byId('stop');
    byId('send').disabled = isBusy || !this.isLoaded;
    byId('stop').disabled = !isBusy;
    byId('regenerate').disabled = isBusy || !this.isLoaded || this.#messages.length === 0;
    byId('clear').disabled = isBusy || this.#messages.length === 0;
    if (hadStop && !isBusy) byId('prompt').focus();
  }
}

function settings() {
  const temperature = byId('temperature').valueAsNumber;
  const max_tokens = byId('max-tokens').valueAsNumber;
  return { temperature: Number.isFinite(temperature) ? temperature : 0, max_tokens: Number.isFinite(max_tokens) ? max_tokens : 128 };
}

function memoryFigures({ devices, wasm_bytes }) {
  const used = devices.map(({ device, peak, budget }) => [`Peak of ${device}`, budget ? `${bytes(peak)} / ${bytes(budget)}` : bytes(peak)]);
  return [...used, ["Engine's own memory", bytes(wasm_bytes)]];
}

/** Counts tokens as they come. */
class Meter {
  n = 0;
  ttft = 0;
  #begin = performance.now();
  #first = 0;
  #last = 0;

  count() {
    this.#last = performance.now();
    if (this.n === 0) {
      this.#first = this.#last;
      this.ttft = (this.#first - this.#begin) / 1000;
    }
    this.n += 1;
  }

  get rate() {
    return this.n > 1 ? (this.n - 1) / ((this.#last - this.#first) / 1000) : 0;
  }
}

/** Tells a screen reader whole sentences, not tokens. */
class Spoken {
  #place;
  #rest = '';

  constructor(place) {
    this.#place = place;
  }

  add(text) {
    this.#rest += text;
    const end = Math.max(...['. ', '! ', '? ', '\n'].map((mark) => this.#rest.lastIndexOf(mark)));
    if (end > 0) this.#tell(end + 1);
  }

  end() {
    this.#tell(this.#rest.length);
  }

  #tell(length) {
    const sentence = this.#rest.slice(0, length).trim();
    this.#rest = this.#rest.slice(length);
    if (sentence) this.#place.textContent = sentence;
  }
}
