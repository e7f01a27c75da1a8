// The conversation: ask, stop, change, try again, go on, and how fast it went.
// What was not answered is no part of it: a message goes back to the box, an answer that was to be replaced stays.

import { byId, element, showError, showFigures } from './elements.js';
import { bytes, duration, tokensPerSec } from './format.js';
import { keep, storage } from './keep.js';
import { MessageView } from './message.js';
import { Meter, Spoken } from './meter.js';
import { words } from './summary.js';

const DEFAULT_MAX_TOKENS = 512;
/** Where the settings of answers are kept. */
const SETTINGS = 'tierflow.answers';
/** A box for messages grows up to this height, in pixels. */
const MAX_BOX = 200;
const EXAMPLES = ['Explain how rainbows form, in three sentences.', 'Write a short poem about the sea.', 'What is the capital of France?'];

export class ChatView {
  #loaded = null;
  #engine;
  #parts;
  /** What is shown, as the conversation has it. */
  #conversation = null;
  #views = [];
  #stop = null;
  #gbPerToken = null;
  #figures = [];
  #memory = [];
  #nPositions = 0;

  /**
   * @param {{engine: object, onBusy: (isBusy: boolean) => void, onDeviceLost: (error: Error) => void, onChanged: (conversation: object) => void,
   *   onNew: () => void, prepare: () => Promise<boolean>}} parts `prepare` loads a model where none is loaded, and says whether it could
   */
  constructor({ engine, ...parts }) {
    this.#engine = engine;
    this.#parts = parts;
    byId('ask').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#send();
    });
    byId('prompt').addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    byId('prompt').addEventListener('input', fitBox);
    byId('stop').addEventListener('click', () => this.#stop?.abort());
    byId('system').addEventListener('change', () => {
      this.#conversation.system = byId('system').value.trim();
      this.#changed();
    });
    keepSettings();
    byId('show-options').addEventListener('click', () => {
      byId('chat-options').hidden = !byId('chat-options').hidden;
      byId('show-options').setAttribute('aria-expanded', String(!byId('chat-options').hidden));
    });
  }

  get isLoaded() {
    return this.#loaded !== null;
  }

  get conversation() {
    return this.#conversation;
  }

  /** Shows a conversation in place of another, whose answer ends if it is under way. */
  show(conversation) {
    this.#stop?.abort();
    this.#conversation = conversation;
    this.#figures = [];
    this.#nPositions = 0;
    byId('system').value = conversation.system;
    byId('messages').replaceChildren();
    this.#views = [];
    for (const message of conversation.messages) this.#view(message);
    showError(byId('chat-error'));
    this.#show();
    this.#update();
  }

  /** A model is there, `{name, plan}`, or not; what was said stays. */
  setLoaded(loaded) {
    this.#loaded = loaded;
    if (loaded) {
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

  async #send() {
    const content = byId('prompt').value.trim();
    if (!content || this.#stop) return;
    if (!this.isLoaded && !(await this.#parts.prepare())) return;
    // Who pressed twice while it was loaded has asked once.
    if (this.#stop || byId('prompt').value.trim() !== content) return;
    setPrompt('');
    this.#say({ role: 'user', content });
    this.#answer({
      undo: () => {
        this.#takeBack();
        if (!byId('prompt').value) setPrompt(content);
      },
    });
  }

  /** Answers the last question anew. What was answered before comes back where nothing is said. */
  #again() {
    if (this.#stop || !this.isLoaded) return;
    const former = this.#views.at(-1)?.message.role === 'assistant' ? this.#takeBack() : null;
    this.#answer({ undo: () => former && this.#say(former) });
  }

  /** Asks from a message of the user's on, as it is now; what came behind it is gone. */
  #askFrom(view, content) {
    if (this.#stop) return;
    const at = this.#views.indexOf(view);
    const former = this.#views.slice(at).map(({ message }) => message);
    while (this.#views.length > at) this.#takeBack();
    this.#say({ role: 'user', content });
    this.#answer({
      undo: () => {
        this.#takeBack();
        former.forEach((message) => this.#say(message));
      },
    });
  }

  /** Goes on with the last answer, which was cut off. */
  #goOn() {
    if (this.#stop || !this.isLoaded) return;
    const view = this.#views.at(-1);
    const { note } = view.message;
    this.#answer({ goOn: view, undo: () => view.note(note) });
  }

  /** Takes the last message out of the conversation. */
  #takeBack() {
    this.#views.pop().remove();
    return this.#conversation.messages.pop();
  }

  /** Answers the conversation; `undo` is called where nothing was said. `goOn` is the answer that goes on, in place of a new one. */
  async #answer({ undo, goOn = null }) {
    const controller = (this.#stop = new AbortController());
    const conversation = this.#conversation;
    const request = { messages: this.#messages(), ...settings(), ...(goOn ? { continue_final_message: true } : {}) };
    const answer = goOn ?? this.#say({ role: 'assistant', content: '' });
    const length = answer.message.content.length + (answer.message.reasoning?.length ?? 0);
    const said = () => answer.message.content.length + (answer.message.reasoning?.length ?? 0) > length;
    const meter = new Meter();
    const spoken = new Spoken(byId('spoken'));
    const onProgress = (progress) => this.#follow(progress, answer, meter);
    showError(byId('chat-error'));
    this.#gbPerToken = null;
    this.#memory = [];
    this.#measure(meter);
    this.#update();
    this.#changed();
    this.#parts.onBusy(true);
    let usage = null;
    try {
      const body = { ...request, stream: true, stream_options: { include_usage: true } };
      const stream = await this.#engine.chat.completions.create(body, { signal: controller.signal, onProgress });
      let finish = null;
      for await (const chunk of stream) {
        usage = chunk.usage ?? usage;
        finish = chunk.choices[0]?.finish_reason ?? finish;
        const { content, reasoning_content: reasoning } = chunk.choices[0]?.delta ?? {};
        if (!content && !reasoning) continue;
        answer.add({ content, reasoning });
        if (content) spoken.add(content);
      }
      this.#end(answer, endOf(finish, usage, request.max_tokens));
    } catch (error) {
      usage = error.usage ?? null;
      // What belongs to a conversation that is not shown any more is kept as far as it came.
      if (conversation !== this.#conversation) this.#end(answer, { note: 'Stopped.', isCut: said() });
      else this.#fail(error, answer, said(), undo);
    } finally {
      answer.flush();
      spoken.end();
      this.#stop = null;
      this.#parts.onBusy(false);
      this.#changed(conversation);
      if (conversation === this.#conversation) this.#measure(meter, usage);
      await this.#remember();
      this.#update();
    }
  }

  /** What the model is asked: instructions first, then what was said. */
  #messages() {
    const { system, messages } = this.#conversation;
    const plain = messages.map(({ role, content, reasoning }) => ({ role, content, ...(reasoning ? { reasoning_content: reasoning } : {}) }));
    return system ? [{ role: 'system', content: system }, ...plain] : plain;
  }

  /** Until the first token comes, how far the prompt is read stands in its place. */
  #follow({ stage, done, total }, answer, meter) {
    if (stage === 'prompt') meter.nPrompt = total;
    else meter.count();
    answer.note(stage === 'prompt' ? `Reading the prompt: ${done} of ${total} tokens` : '');
    this.#measure(meter);
  }

  #end(answer, { note = '', isCut = false }) {
    Object.assign(answer.message, { note: note || undefined, isCut: isCut || undefined });
    answer.note(note);
  }

  #fail(error, answer, hasSaid, undo) {
    const isStopped = error.name === 'AbortError';
    const isLost = error.name === 'DeviceLostError';
    if (isLost) this.#parts.onDeviceLost(error);
    else if (!isStopped) showError(byId('chat-error'), error, this.#remedies(error));
    this.#end(answer, { note: isStopped ? 'Stopped.' : 'Broken off.', isCut: hasSaid });
    if (hasSaid) return;
    if (answer.message.content === '' && !answer.message.reasoning) this.#takeBack();
    // After a GPU was lost the question is still the next to be answered.
    if (!isLost) undo();
  }

  #remedies({ name }) {
    return name === 'ContextFullError' && this.#views.length > 2 ? [['Begin a new conversation', this.#parts.onNew]] : [];
  }

  /** Adds a message to the conversation. */
  #say(message) {
    this.#conversation.messages.push(message);
    return this.#view(message);
  }

  #view(message) {
    const model = this.#loaded?.name ?? (this.#conversation.model || 'Model');
    const view = new MessageView(byId('messages'), message, message.role === 'user' ? 'You' : model);
    this.#views.push(view);
    return view;
  }

  #changed(conversation = this.#conversation) {
    if (this.#loaded) conversation.model = this.#loaded.name;
    this.#parts.onChanged(conversation);
  }

  #measure(meter, usage = null) {
    const context = this.#loaded?.plan.ctx_size;
    this.#nPositions = usage?.total_tokens ?? (meter.nPrompt === null ? this.#nPositions : meter.nPrompt + meter.n);
    const nPositions = usage?.total_tokens ?? (meter.nPrompt === null ? '…' : this.#nPositions);
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
    byId('foot').textContent = this.#footOf();
  }

  /** Whose answers these are, how fast they come and how much is remembered, in one line. */
  #footOf() {
    const loaded = this.#loaded;
    if (!loaded) return 'Answers are made on this computer. Models make mistakes: check what matters.';
    const context = loaded.plan.ctx_size;
    const used = this.#nPositions > 0 ? `, ${Math.round((this.#nPositions / context) * 100)} % of it used` : '';
    const rate = this.#figures.length > 0 && this.#figures[0][1] !== '…' ? ` · ${this.#figures[0][1].replace('t/s', 'tokens a second')}` : '';
    return `Remembers about ${words(context)}${used}${rate || ' · Models make mistakes: check what matters.'}`;
  }

  #update() {
    const isBusy = this.#stop !== null;
    const hadStop = document.activeElement === byId('stop');
    byId('send').hidden = isBusy;
    byId('stop').hidden = !isBusy;
    byId('stop').disabled = !isBusy;
    if (hadStop && !isBusy) byId('prompt').focus();
    this.#views.forEach((view, index) => view.setActions(isBusy ? [] : this.#actionsOf(view, index === this.#views.length - 1)));
    this.#suggest();
    this.#show();
  }

  #actionsOf(view, isLast) {
    const { role, isCut } = view.message;
    const again = isLast && this.isLoaded ? [[role === 'user' ? 'Answer' : 'Try again', () => this.#again(), 'regenerate']] : [];
    const edit = role === 'user' && this.isLoaded ? [['Edit', () => view.edit((text) => this.#askFrom(view, text))]] : [];
    const goOn = isLast && role === 'assistant' && isCut && this.isLoaded ? [['Go on', () => this.#goOn(), 'go-on']] : [];
    return [...goOn, ...edit, ...again];
  }

  /** An empty conversation with a model that waits says what could be asked. */
  #suggest() {
    const list = byId('messages');
    const isEmpty = this.#views.length === 0;
    const there = list.querySelector('.suggestions');
    if (!isEmpty || !this.isLoaded) return there?.remove();
    if (there) return undefined;
    const take = (text) => () => {
      setPrompt(text);
      this.#send();
    };
    const buttons = EXAMPLES.map((text) => element('button', { type: 'button', onclick: take(text) }, text));
    return list.append(element('div', { class: 'suggestions' }, element('p', {}, 'Ask something, for example:'), ...buttons));
  }
}

function setPrompt(text) {
  byId('prompt').value = text;
  fitBox();
}

/** As high as its text. */
function fitBox() {
  const box = byId('prompt');
  box.style.height = 'auto';
  box.style.height = `${Math.min(box.scrollHeight + 2, MAX_BOX)}px`;
}

/** What was set last is set again; what is stored may be anything. */
function keepSettings() {
  const fields = [byId('temperature'), byId('max-tokens')];
  const stored = (storage.getItem(SETTINGS) ?? '').split(' ');
  fields.forEach((field, index) => {
    if (stored[index] && Number.isFinite(Number(stored[index]))) field.value = stored[index];
    field.addEventListener('change', () => keep(SETTINGS, fields.map(({ value }) => value).join(' ')));
  });
}

function settings() {
  const temperature = byId('temperature').valueAsNumber;
  const max_tokens = byId('max-tokens').valueAsNumber;
  return { temperature: Number.isFinite(temperature) ? temperature : 0, max_tokens: Number.isFinite(max_tokens) ? max_tokens : DEFAULT_MAX_TOKENS };
}

/** What an answer that was cut off says; nothing of one that came to its end. */
function endOf(finish, usage, maxTokens) {
  if (finish !== 'length') return {};
  const n = usage.completion_tokens;
  if (n < maxTokens) return { note: `Cut off after ${n} tokens: the context is full.` };
  return { note: `Cut off after ${n} tokens, the most that are asked for.`, isCut: true };
}

function memoryFigures({ devices, wasm_bytes }) {
  const used = devices.map(({ device, peak, budget }) => [`Peak of ${device}`, budget ? `${bytes(peak)} / ${bytes(budget)}` : bytes(peak)]);
  return [...used, ["Engine's own memory", bytes(wasm_bytes)]];
}
