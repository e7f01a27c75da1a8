// A slider with a field beside it: the slider for a feel, the field for an exact value.

import { element } from './elements.js';

export class Slider {
  #range;
  #field;
  #steps = [];
  #text;
  #parse;

  /**
   * @param {HTMLElement} place
   * @param {{label: string, text: (value: number | null) => string, parse: (text: string) => number | null, onChange: () => void}} options
   *   `null` is the slider's end: no limit, or automatic
   */
  constructor(place, { label, text, parse, onChange }) {
    this.#text = text;
    this.#parse = parse;
    this.value = null;
    const id = `${place.id}-range`;
    this.#range = element('input', { type: 'range', id, min: 0, max: 1, value: 1 });
    this.#field = element('input', { type: 'text', 'aria-label': `${label}, exactly`, spellcheck: 'false' });
    place.append(element('div', { class: 'value' }, element('label', { for: id }, label), this.#field), this.#range);
    this.#range.addEventListener('input', () => {
      this.value = this.#steps[Number(this.#range.value)];
      this.#show();
      onChange();
    });
    this.#field.addEventListener('change', () => {
      const typed = this.#field.value.trim() === '' || this.#field.value === text(null) ? null : parse(this.#field.value);
      if (typed !== null || this.#field.value.trim() === '' || this.#field.value === text(null)) this.value = typed;
      this.#show();
      onChange();
    });
    this.#show();
  }

  /** Sets what the slider can choose from; its value stays. */
  setSteps(steps) {
    this.#steps = steps;
    this.#range.max = String(steps.length - 1);
    this.#show();
  }

  /** Sets the value, as if it had been typed. */
  set(value) {
    this.value = value;
    this.#show();
  }

  #show() {
    const words = this.#text(this.value);
    this.#field.value = words;
    this.#range.value = String(this.#nearest());
    this.#range.setAttribute('aria-valuetext', words);
  }

  #nearest() {
    if (this.value === null) return Math.max(0, this.#steps.indexOf(null));
    const distance = (step) => (step === null ? Infinity : Math.abs(step - this.value));
    return this.#steps.reduce((best, step, index) => (distance(step) < distance(this.#steps[best]) ? index : best), 0);
  }
}

/** Eight steps to each doubling from `from` to `to`, and no limit at the end. */
export function sizeSteps(from, to) {
  const steps = [];
  for (let octave = from; octave < to; octave *= 2) {
    for (let part = 0; part < 8; part += 1) {
      const step = octave * (1 + part / 8);
      if (step < to) steps.push(step);
    }
  }
  return [...steps, null];
}
