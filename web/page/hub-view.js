// What a repository of the hub holds: its quantisations, whether each goes on this machine and how fast, before anything is downloaded.

import { byId, element, showError } from './elements.js';
import { size } from './format.js';
import { fitOf, pace } from './summary.js';

/** So many are predicted without being asked: each takes the headers of a file, some megabytes. */
const N_PREDICTED = 3;

export class HubView {
  #planner;
  #listHub;
  #onChoose;
  #freeBytes;
  #stop = null;

  /**
   * @param {{planner: object, listHub: Function, onChoose: (model: {name: string, parts: object[]}) => void, freeBytes: () => Promise<number | null>}} parts
   *   `freeBytes` is the room that the browser's storage has left
   */
  constructor({ planner, listHub, onChoose, freeBytes }) {
    this.#planner = planner;
    this.#listHub = listHub;
    this.#onChoose = onChoose;
    this.#freeBytes = freeBytes;
  }

  hide() {
    this.rest();
    byId('listing').hidden = true;
  }

  /** Predicts no more by itself: a model is chosen, whose headers are wanted now. */
  rest() {
    this.#stop?.abort();
  }

  /** Lists a repository. Yields its models; what is asked for by name is chosen by the caller. */
  async show(name) {
    this.hide();
    const { signal } = (this.#stop = new AbortController());
    byId('model-said').textContent = 'Asking the hub…';
    try {
      const [{ repo, models }, free] = await Promise.all([this.#listHub(name, { signal }), this.#freeBytes()]);
      signal.throwIfAborted();
      if (models.length === 0) throw Object.assign(new Error(`${repo} holds neither .gguf nor .safetensors files.`), { name: 'InvalidFileError' });
      this.#draw(repo, models, free, signal);
      return models;
    } catch (error) {
      if (!signal.aborted) showError(byId('model-error'), error);
      return [];
    } finally {
      if (!signal.aborted) byId('model-said').textContent = '';
    }
  }

  #draw(repo, models, free, signal) {
    byId('listing').hidden = false;
    byId('listing-title').textContent = repo;
    byId('listing-facts').textContent =
      models.length > 1 ? 'The same model in several sizes: fewer bits are smaller and faster, more bits more exact. The first one suits most.' : '';
    const rows = models.map((model) => this.#row(repo, model, free));
    byId('variants').replaceChildren(...rows.map(({ node }) => node));
    byId('listing').scrollIntoView({ block: 'nearest' });
    this.#predict(rows.slice(0, N_PREDICTED), signal);
  }

  /** One after the other, until a model is chosen. */
  async #predict(rows, signal) {
    for (const row of rows) if (!signal.aborted) await row.predict(signal);
  }

  #row(repo, model, free) {
    const said = element('span', { class: 'fit' });
    const choose = () => this.#onChoose({ name: `${repo.split('/')[1]} ${model.quant}`, hub: `${repo}:${model.quant}`, parts: model.source });
    const use = element('button', { type: 'button', 'aria-label': `Use ${model.quant}`, onclick: choose }, 'Use');
    const ask = element('button', { type: 'button', class: 'quiet', 'aria-label': `Predict ${model.quant}` }, 'Predict');
    const predict = async (signal) => {
      said.textContent = '…';
      const words = lackOfRoom(model, free) ?? (await this.#predicted(model, signal));
      said.replaceChildren(words ?? ask);
    };
    ask.addEventListener('click', () => predict());
    said.append(lackOfRoom(model, free) ?? ask);
    const bytes = model.size === null ? '' : size(model.size);
    return { predict, node: element('li', {}, element('strong', {}, model.quant), element('span', {}, bytes), said, use) };
  }

  /** Whether it fits and how fast it should be; `null` where that is not wanted any more. */
  async #predicted(model, signal) {
    try {
      const planned = await this.#planner.plan(model.source, { signal });
      const { fit, tokensPerSec } = fitOf(planned);
      return `${fit}, about ${pace(tokensPerSec)}`;
    } catch (error) {
      if (signal?.aborted) return null;
      return error.name === 'DoesNotFitError' ? 'does not fit here' : error.message;
    }
  }
}

/** Why a model cannot be kept here; `null` where it can, or nobody knows. */
function lackOfRoom({ size: needed }, free) {
  return needed !== null && free !== null && needed > free ? `does not fit here: the browser's storage has ${size(free)} left` : null;
}
