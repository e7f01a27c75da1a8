// One message of a conversation on the page: what was thought, what was said, how it ended, and what can be done with it.

import { element } from './elements.js';
import { Rendered, copyText } from './markdown.js';

/** A list is at its end as long as so few pixels are below. */
const NEAR_END = 60;

export class MessageView {
  node;
  #message;
  #list;
  #body;
  #rendered = null;
  #thought;
  #reasoning;
  #note;
  #actions;
  #frame = 0;

  /**
   * @param {HTMLElement} list @param {import('./conversations.js').Message} message @param {string} title who speaks
   */
  constructor(list, message, title) {
    this.#list = list;
    this.#message = message;
    this.#thought = element('div', { class: 'thought' });
    this.#reasoning = element('details', { class: 'reasoning', hidden: true }, element('summary', {}, 'Reasoning'), this.#thought);
    this.#body = element('div', { class: 'body' });
    this.#note = element('p', { class: 'note', hidden: true });
    this.#actions = element('div', { class: 'actions' });
    this.node = element('article', { class: message.role }, element('h3', {}, title), this.#reasoning, this.#body, this.#note, this.#actions);
    this.node.message = message;
    if (message.role === 'assistant') this.#rendered = new Rendered(this.#body);
    list.append(this.node);
    this.#draw();
    this.note(message.note ?? '');
    list.scrollTop = list.scrollHeight;
  }

  get message() {
    return this.#message;
  }

  /** The message goes on; it is drawn with the next frame, however many tokens come until then. */
  add({ content = '', reasoning = '' }) {
    this.#message.content += content;
    if (reasoning) this.#message.reasoning = (this.#message.reasoning ?? '') + reasoning;
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  /** Draws what has come so far, also on a page that is not seen, where no frames come. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#keepingEnd(() => this.#draw());
  }

  /** Says below it how it is, or how it ended. */
  note(words) {
    if (this.#note.textContent === words) return;
    this.#keepingEnd(() => {
      this.#note.textContent = words;
      this.#note.hidden = words === '';
    });
  }

  /** What can be done with it: `[[label, action, id], …]`; its text can always be copied. */
  setActions(actions) {
    const button = ([label, onclick, id]) => element('button', { type: 'button', id, onclick }, label);
    const copy = element('button', { type: 'button' }, 'Copy');
    copy.addEventListener('click', () => copyText(this.#message.content, copy));
    const had = this.#actions.contains(document.activeElement) ? document.activeElement.id : '';
    this.#keepingEnd(() => this.#actions.replaceChildren(...(this.#message.content ? [copy] : []), ...actions.map(button)));
    if (had) document.getElementById(had)?.focus();
  }

  /** Puts a box in the place of the text; `done` gets what it is to be. */
  edit(done) {
    const box = element('textarea', { rows: Math.min(12, this.#message.content.split('\n').length + 1), 'aria-label': 'Change the message' });
    box.value = this.#message.content;
    const close = () => {
      this.#draw();
      this.#body.hidden = false;
      form.remove();
    };
    const form = element('form', { class: 'edit' }, box, element('div', { class: 'row' }, element('button', { type: 'submit', class: 'main' }, 'Ask again'), element('button', { type: 'button', onclick: close }, 'Cancel')));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      const text = box.value.trim();
      close();
      if (text) done(text);
    });
    form.addEventListener('keydown', (event) => event.key === 'Escape' && close());
    this.#body.hidden = true;
    this.#body.after(form);
    box.focus();
  }

  remove() {
    cancelAnimationFrame(this.#frame);
    this.node.remove();
  }

  #draw() {
    const { content, reasoning = '' } = this.#message;
    if (this.#rendered) this.#rendered.set(content);
    else this.#body.textContent = content;
    this.#reasoning.hidden = reasoning === '';
    this.#thought.textContent = reasoning.trim();
  }

  #keepingEnd(change) {
    const list = this.#list;
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_END;
    change();
    if (isAtEnd) list.scrollTop = list.scrollHeight;
  }
}
