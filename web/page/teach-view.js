// Teaching: examples become an adapter beside the model, whose loss is drawn while it falls. The adapter can be saved and used.

import { byId, element, saveAs, shape, showError } from './elements.js';
import { recordsOf } from './examples.js';
import { bytes, timeLeft, tokensPerSec } from './format.js';
import { keep, storage } from './keep.js';

/** The name under which the browser keeps the examples. */
const KEPT = 'tierflow.examples';
/** Size of the picture of the loss, and what stays free around the curve. */
const [WIDTH, HEIGHT, LEFT, FOOT] = [420, 160, 44, 20];

export class TeachView {
  #runner;
  #parts;
  #stop = null;
  #begin = null;
  #losses = [];
  #adapter = null;

  /**
   * @param {{runner: object, source: () => Promise<object | null>, placement: () => object, onBegin: () => void,
   *   onUse: (adapter: File[]) => void}} parts `source` is the model that is chosen; `onBegin` hears that what was loaded is given up
   */
  constructor({ runner, ...parts }) {
    this.#runner = runner;
    this.#parts = parts;
    byId('examples').value = storage.getItem(KEPT) ?? '';
    byId('examples').addEventListener('change', ({ target }) => keep(KEPT, target.value));
    byId('teach').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#teach();
    });
    byId('teach-stop').addEventListener('click', () => this.#stop?.abort());
    byId('use-adapter').addEventListener('click', () => this.#parts.onUse(this.#adapter));
    byId('save-adapter').addEventListener('click', () => this.#adapter.forEach((file) => saveAs(file.name, file.type, file)));
  }

  /** Whether it learns now. */
  get isBusy() {
    return this.#stop !== null;
  }

  async #teach() {
    if (this.isBusy) return;
    keep(KEPT, byId('examples').value);
    this.#stop = new AbortController();
    this.#show();
    showError(byId('teach-error'));
    this.#say('Reading the model…');
    try {
      const source = await this.#parts.source();
      if (!source) return this.#say('Choose a model first.');
      [this.#losses, this.#adapter, this.#begin] = [[], null, null];
      byId('curve').replaceChildren();
      this.#parts.onBegin();
      this.#finish(await this.#train(source), 'Done');
    } catch (error) {
      if (error.name !== 'AbortError') this.#fail(error);
      else if (error.trained?.steps.length > 0) this.#finish(error.trained, 'Stopped');
      else this.#say('Stopped before the first step.');
    } finally {
      this.#stop = null;
      this.#show();
    }
  }

  #train(source) {
    const options = { steps: 'teach-steps', lr: 'teach-rate', batch: 'teach-batch', seq_len: 'teach-length' };
    const asked = Object.entries(options).map(([name, id]) => [name, byId(id).valueAsNumber]);
    return this.#runner.train(source, recordsOf(byId('examples').value), {
      ...this.#parts.placement(),
      ...Object.fromEntries(asked),
      scheduler: 'constant',
      signal: this.#stop.signal,
      onProgress: (event) => this.#progress(event),
      onStep: (report) => this.#step(report),
    });
  }

  #progress({ stage, done, total, n_steps, ...size }) {
    if (stage === 'measure') return this.#say('Measuring this machine…');
    if (stage !== 'train') return this.#say(`${stage === 'download' ? 'Downloading' : 'Loading'}: ${bytes(done)}${total ? ` of ${bytes(total)}` : ''}`);
    this.#begin = { n_steps, ...size };
    const left = size.n_too_long > 0 ? `; ${size.n_too_long} longer ones are left out` : '';
    return this.#say(`${size.n_records} examples${left}; ${size.gpu?.name ?? 'the processor'} computes step 1 of ${n_steps}.`);
  }

  #step({ step, loss, n_tokens, secs }) {
    if (loss !== null) this.#losses.push([step, loss]);
    const { n_steps } = this.#begin;
    const left = timeLeft((n_steps - step) * secs);
    const told = loss === null ? 'loss without a number, left out' : `loss ${loss.toFixed(3)}`;
    this.#say(`Step ${step} of ${n_steps}: ${told}, ${tokensPerSec(n_tokens / secs)}${step < n_steps ? `, about ${left} left` : ''}.`);
    this.#draw();
  }

  #finish({ steps, adapter }, word) {
    this.#adapter = adapter;
    const known = steps.filter(({ loss }) => loss !== null);
    const fell = known.length > 0 ? `, the loss went from ${known[0].loss.toFixed(3)} to ${known.at(-1).loss.toFixed(3)}` : '';
    this.#say(`${word} after ${steps.length} steps${fell}. The adapter has ${bytes(adapter.reduce((sum, file) => sum + file.size, 0))}.`);
  }

  #fail(error) {
    showError(byId('teach-error'), error);
    this.#say('');
  }

  #show() {
    byId('teach-start').hidden = this.isBusy;
    byId('teach-stop').hidden = !this.isBusy;
    byId('taught').hidden = this.isBusy || !this.#adapter;
  }

  #say(text) {
    byId('teach-said').textContent = text;
  }

  /** The losses so far, from zero up, over all steps that there will be. */
  #draw() {
    const most = Math.max(...this.#losses.map(([, loss]) => loss), 1e-9);
    const x = (step) => LEFT + ((WIDTH - LEFT - 4) * (step - 1)) / Math.max(this.#begin.n_steps - 1, 1);
    const y = (loss) => 8 + (HEIGHT - FOOT - 8) * (1 - loss / most);
    const [last] = this.#losses.slice(-1);
    const label = `The loss of ${this.#losses.length} steps, now ${last[1].toFixed(3)}`;
    const picture = shape('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': label, class: 'curve' });
    for (const level of [0, most / 2, most]) {
      picture.append(shape('line', { x1: LEFT, x2: WIDTH - 4, y1: y(level), y2: y(level), class: 'grid' }));
      picture.append(shape('text', { x: LEFT - 6, y: y(level) + 4, 'text-anchor': 'end' }, level.toFixed(2)));
    }
    picture.append(shape('text', { x: LEFT, y: HEIGHT - 4 }, 'step 1'), shape('text', { x: WIDTH - 4, y: HEIGHT - 4, 'text-anchor': 'end' }, `step ${this.#begin.n_steps}`));
    picture.append(shape('polyline', { points: this.#losses.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(' ') }));
    picture.append(shape('circle', { cx: x(last[0]), cy: y(last[1]), r: 3 }));
    byId('curve').replaceChildren(picture, element('p', { class: 'faint' }, 'Loss: how surprised the model is by the answers. It falls as it learns.'));
  }
}
