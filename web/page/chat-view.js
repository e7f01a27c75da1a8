// The conversation: send, stop, regenerate, and how fast it went. Text from the model goes in as text, never as markup.
// What was not answered is no part of it: a message goes back to the box, an answer that was to be replaced stays.

import { byId, element, showError, showFigures } from './elements.js';
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
      showError(byId('chat-error'));
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
    const asked = this.#say({ role: 'user', content });
    this.#answer(() => {
      this.#takeBack(asked);
      byId('prompt').value ||= content;
    });
  }

  #regenerate() {
    if (this.#stop) return;
    const former = this.#messages.at(-1)?.role === 'assistant' ? { message: this.#messages.at(-1), node: byId('messages').lastElementChild } : null;
    if (former) this.#takeBack(former);
    this.#answer(() => {
      if (!former) return;
      this.#messages.push(former.message);
      byId('messages').append(former.node);
    });
  }

  /** Takes the last message out of the conversation. */
  #takeBack({ node }) {
    this.#messages.pop();
    node.remove();
  }

  #clear() {
    this.#messages = [];
    this.#figures = [];
    byId('messages').replaceChildren();
    showError(byId('chat-error'));
    this.#show();
    this.#update();
  }

  /** Answers the conversation; `undo` is called where nothing was said. */
  async #answer(undo) {
    const controller = (this.#stop = new AbortController());
    const request = { messages: this.#messages.map(({ role, content }) => ({ role, content })), ...settings() };
    const answer = this.#say({ role: 'assistant', content: '' });
    const meter = new Meter();
    const spoken = new Spoken(byId('spoken'));
    const onProgress = (progress) => this.#follow(progress, answer, meter);
    showError(byId('chat-error'));
    this.#gbPerToken = null;
    this.#memory = [];
    this.#measure(meter);
    this.#update();
    this.#onBusy(true);
    let usage = null;
    try {
      const body = { ...request, stream: true, stream_options: { include_usage: true } };
      const stream = await this.#engine.chat.completions.create(body, { signal: controller.signal, onProgress });
      let finish = null;
      for await (const chunk of stream) {
        usage = chunk.usage ?? usage;
        finish = chunk.choices[0]?.finish_reason ?? finish;
        const text = chunk.choices[0]?.delta.content;
        if (!text) continue;
        answer.add(text);
        spoken.add(text);
      }
      answer.note(endOf(finish, usage, request.max_tokens));
    } catch (error) {
      usage = error.usage ?? null;
      this.#fail(error, answer, undo);
    } finally {
      spoken.end();
      this.#stop = null;
      this.#onBusy(false);
      this.#measure(meter, usage);
      await this.#remember();
      this.#update();
    }
  }

  /** Until the first token comes, how far the prompt is read stands in its place. */
  #follow({ stage, done, total }, answer, meter) {
    if (stage === 'prompt') meter.nPrompt = total;
    else meter.count();
    answer.note(stage === 'prompt' ? `Reading the prompt: ${done} of ${total} tokens` : '');
    this.#measure(meter);
  }

  #fail(error, answer, undo) {
    const isStopped = error.name === 'AbortError';
    const isLost = error.name === 'DeviceLostError';
    if (isLost) this.#onDeviceLost(error);
    else if (!isStopped) showError(byId('chat-error'), error, this.#remedies(error));
    answer.note(isStopped ? 'Stopped.' : 'Broken off.');
    if (answer.message.content !== '') return;
    this.#takeBack(answer);
    // After a GPU was lost the question is still the next to be answered.
    if (!isLost) undo();
  }

  #remedies({ name }) {
    return name === 'ContextFullError' && this.#messages.length > 2 ? [['Begin a new conversation', () => this.#clear()]] : [];
  }

  /** Adds a message; its text can grow, and a note below it shows its state. */
  #say(message) {
    this.#messages.push(message);
    const text = document.createTextNode(message.content);
    const title = message.role === 'user' ? 'You' : (this.#engine.loaded?.name ?? 'Model');
    const remark = element('p', { class: 'note', hidden: true });
    const node = element('article', { class: message.role }, element('h3', {}, title), remark, text);
    const list = byId('messages');
    list.append(node);
    list.scrollTop = list.scrollHeight;
    const change = (apply) => {
      const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
      apply();
      if (isAtEnd) list.scrollTop = list.scrollHeight;
    };
    const add = (more) => {
      message.content += more;
      change(() => text.appendData(more));
    };
    const note = (words) => {
      if (remark.textContent === words) return;
      change(() => {
        remark.textContent = words;
        remark.hidden = words === '';
      });
    };
    return { message, node, add, note };
  }

  #measure(meter, usage = null) {
    const context = this.#engine.loaded?.plan.ctx_size;
    const nPositions = usage?.total_tokens ?? (meter.nPrompt === null ? '…' : meter.nPrompt + meter.n);
    this.#figures = [
      ['Decode', meter.rate ? tokensPerSec(meter.rate) : '…'],
      ['First token after', meter.ttft ? duration(meter.ttft) : '…'],
      ['Tokens', String(usage?.completion_tokens ?? meter.n)],
      ['Context', context ? `${nPositions} of ${context}` : '…'],
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

/** What an answer that was cut off says; nothing of one that came to its end. */
function endOf(finish, usage, maxTokens) {
  if (finish !== 'length') return '';
  const n = usage.completion_tokens;
  return n < maxTokens ? `Cut off after ${n} tokens: the context is full.` : `Cut off after ${n} tokens, the most that are asked for.`;
}

function memoryFigures({ devices, wasm_bytes }) {
  const used = devices.map(({ device, peak, budget }) => [`Peak of ${device}`, budget ? `${bytes(peak)} / ${bytes(budget)}` : bytes(peak)]);
  return [...used, ["Engine's own memory", bytes(wasm_bytes)]];
}

/** Counts tokens as they come. */
class Meter {
  n = 0;
  nPrompt = null;
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

/** Gives a screen reader whole sentences, not tokens. */
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
