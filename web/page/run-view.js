// Loading with progress and cancel, what the chosen model comes to, and the browser's storage.

import { byId, element, showError } from './elements.js';
import { bytes, duration, percent, size, timeLeft } from './format.js';
import { groupsOf } from './hub-memory.js';
import { fitInWords, memoryInWords } from './summary.js';
import { executorsOf } from './tier-map.js';

/** A chosen model as the package takes it. */
export function sourceOf({ url, name, parts, files }, keep) {
  if (parts) return parts.map((part) => ({ ...part, keep }));
  return url ? { url, keep, name } : files;
}

export class RunView {
  #runner;
  #planner;
  #plan;
  #onLoaded;
  #source = null;
  #cancel = null;
  #loading = null;
  /** The models of the list as it is drawn. */
  #listed = '';
  /** What the chosen model was taught: the files of an adapter; it is loaded with them. */
  #adapter = null;

  /**
   * @param {{runner: object, planner: object, plan: object, onLoaded: (loaded: object | null) => void}} parts
   *   `runner` holds the model; `planner` answers while the runner is busy; `plan` is the plan's view
   */
  constructor({ runner, planner, plan, onLoaded }) {
    this.#runner = runner;
    this.#planner = planner;
    this.#plan = plan;
    this.#onLoaded = onLoaded;
    byId('load').addEventListener('click', () => this.load());
    byId('cancel').addEventListener('click', () => this.#cancel?.abort());
    byId('unload').addEventListener('click', () => this.unload());
    byId('keep').addEventListener('change', () => this.#showFacts());
  }

  /** The room that the browser's storage has left; `null` where it is not known. */
  get freeBytes() {
    return this.stored?.quota > 0 ? this.stored.quota - this.stored.usage : null;
  }

  /** Whether the chosen model is stored as a whole. */
  get isStored() {
    return this.#state() === 'whole';
  }

  /** Whether all files of a model of the hub are stored. */
  isKept({ parts }) {
    return parts.every((part) => this.stored?.models.some(({ url, complete }) => complete && url === part.url));
  }

  /** The chosen model as the package takes it; `null` where there is none, or its plan is for another machine. */
  get source() {
    return this.#source && !this.#plan.isForAnotherMachine ? sourceOf(this.#source, byId('keep').checked) : null;
  }

  /** Loads the chosen model with an adapter. */
  loadWith(adapter) {
    this.#adapter = adapter;
    return this.load();
  }

  /** Nothing is loaded any more: something else has taken its place. */
  gaveUp() {
    this.#onLoaded(null);
    this.#show('idle');
  }

  /** Shows a model that can be loaded: `{files}`, `{url}` or `{parts}`, and its size. */
  async show(source, inspection) {
    this.#adapter = null;
    this.#source = { ...source, size: inspection.size_bytes, name: source.name };
    byId('run').hidden = false;
    byId('keep-label').hidden = this.#urls().length === 0;
    showError(byId('run-error'));
    byId('run-said').textContent = '';
    this.planChanged(null);
    await this.listStored();
    this.#showFacts();
  }

  /** Shows nothing but what is loaded: no model is chosen. */
  hide() {
    this.#source = null;
    byId('run').hidden = !this.#runner.loaded;
    byId('keep-label').hidden = true;
    if (this.#runner.loaded) byId('run-facts').textContent = `${this.#runner.loaded.name} is loaded.`;
    this.planChanged(null);
  }

  /** Follows the plan: what has none cannot be loaded. */
  planChanged(planned) {
    const isElsewhere = this.#plan.isForAnotherMachine;
    byId('fit').textContent = planned && !isElsewhere ? fitInWords(planned) : '';
    byId('memory-facts').textContent = planned && !isElsewhere ? memoryInWords(planned) : '';
    byId('load').disabled = !planned || !this.#source || isElsewhere || this.#cancel !== null;
    byId('load').title = isElsewhere ? 'The plan is for another machine' : '';
  }

  /** Loads what is chosen, or waits for the load that is under way; says whether it was loaded. */
  load() {
    return (this.#loading ??= this.#load().finally(() => (this.#loading = null)));
  }

  async #load() {
    if (byId('load').disabled) return false;
    const { name } = this.#source;
    const { source } = this;
    const taught = this.#adapter ? { adapter: this.#adapter } : {};
    const controller = (this.#cancel = new AbortController());
    const begin = performance.now();
    this.#onLoaded(null);
    this.#show('loading');
    showError(byId('run-error'));
    try {
      const loaded = await this.#runner.load(source, { ...this.#plan.options, ...taught, signal: controller.signal, onProgress: (progress) => this.#progress(progress, begin) });
      byId('run-said').textContent = `Loaded${this.#adapter ? ' with what you taught it' : ''} in ${duration((performance.now() - begin) / 1000)}; ${executorsOf(loaded.plan)} will compute.`;
      this.#show('loaded');
      this.#onLoaded({ ...loaded, name });
      return true;
    } catch (error) {
      this.#show('idle');
      if (error.name === 'AbortError') byId('run-said').textContent = 'Cancelled. What was downloaded is kept, and goes on from there.';
      else this.showError(error);
      return false;
    } finally {
      this.#cancel = null;
      this.planChanged(this.#plan.planned);
      await this.listStored();
      this.#showFacts();
    }
  }

  /** Gives the model up. */
  unload() {
    this.#runner.close();
    this.#onLoaded(null);
    this.#show('idle');
    byId('run-said').textContent = 'Unloaded.';
  }

  /** The GPU was lost: nothing is loaded any more. */
  lost(error) {
    this.#runner.close();
    this.#show('idle');
    this.showError(error);
  }

  /** Says what went wrong, and offers what may help. */
  showError(error) {
    showError(byId('run-error'), error, this.#remedies(error));
    byId('run-said').textContent = '';
  }

  #remedies({ name }) {
    const isMemory = name === 'DeviceLostError' || name === 'LimitError';
    const used = this.#plan.planned?.plan.devices.find(({ device }) => device.startsWith('gpu'))?.used;
    if (!isMemory || !used) return [];
    const half = Math.ceil(Object.values(used).reduce((sum, size) => sum + size, 0) / 2 ** 21) * 2 ** 20;
    const retry = async () => {
      await this.#plan.setGpuBudget(half);
      if (this.#plan.planned) await this.load();
    };
    return [[`Load with a GPU budget of ${bytes(half)}`, retry]];
  }

  #show(state) {
    const isLoading = state === 'loading';
    byId('progress').hidden = !isLoading;
    byId('cancel').hidden = !isLoading;
    byId('load').hidden = isLoading;
    byId('unload').hidden = state !== 'loaded';
    if (isLoading) {
      byId('bar').removeAttribute('value');
      byId('progress-text').textContent = 'Reading headers…';
      byId('run-said').textContent = 'Loading.';
      byId('cancel').focus();
    } else if (document.activeElement === document.body || document.activeElement === byId('cancel')) {
      byId('load').focus();
    }
  }

  #progress({ stage, done, total }, begin) {
    if (stage === 'measure') return (byId('progress-text').textContent = 'Measuring this machine…');
    const verb = stage === 'download' ? 'Downloading' : 'Loading';
    if (total) byId('bar').value = done / total;
    else byId('bar').removeAttribute('value');
    const rate = done / ((performance.now() - begin) / 1000);
    const left = total && rate > 0 ? `, ${timeLeft((total - done) / rate)} left` : '';
    byId('progress-text').textContent = `${verb}: ${bytes(done)}${total ? ` of ${bytes(total)} (${percent(done / total)})` : ''}${stage === 'download' ? left : ''}`;
  }

  /** Addresses of the chosen model's files; none of files of this computer. */
  #urls() {
    const { url, parts = [] } = this.#source ?? {};
    return url ? [url] : parts.map((part) => part.url);
  }

  /** What is stored of the chosen model. */
  #state() {
    const urls = this.#urls();
    if (urls.length === 0) return 'file';
    const there = this.#storedParts();
    if (there.length === urls.length && there.every(({ complete }) => complete)) return 'whole';
    return there.some(({ done }) => done > 0) ? 'part' : 'none';
  }

  #storedParts() {
    const urls = this.#urls();
    return (this.stored?.models ?? []).filter(({ url }) => urls.includes(url));
  }

  #showFacts() {
    if (!this.#source) return;
    const { name, size: total } = this.#source;
    const done = this.#storedParts().reduce((sum, part) => sum + part.done, 0);
    const where = {
      file: 'from your disk; nothing is copied',
      whole: 'stored in this browser',
      part: `${bytes(done)} of it stored; the download goes on from there`,
      none: byId('keep').checked ? 'not stored yet' : 'from the server, range by range',
    };
    const state = this.#state();
    byId('run-facts').textContent = `${name}, ${size(total)} of weights, ${where[state]}.`;
    byId('load').textContent = state === 'none' && byId('keep').checked ? `Download ${size(total)} and load` : 'Load';
  }

  /** Shows what is stored; yields the models that are whole. */
  async listStored() {
    try {
      this.stored = await this.#planner.storage.list();
    } catch (error) {
      byId('storage-facts').textContent = error.message;
      byId('storage').hidden = true;
      byId('keep').checked = false;
      byId('keep').disabled = true;
      return [];
    }
    const { models, usage, quota } = this.stored;
    const share = quota > 0 ? `${size(usage)} used of ${size(quota)} that the browser allows.` : '';
    byId('storage-facts').textContent = `${models.length === 0 ? 'No model is stored yet. ' : ''}${share}`;
    byId('storage').hidden = models.length === 0;
    const whole = models.filter(({ complete }) => complete);
    // What has not changed is not drawn anew: a button that is just pressed, or has the focus, would be gone.
    const listed = JSON.stringify(models);
    if (listed === this.#listed) return whole;
    this.#listed = listed;
    byId('stored').replaceChildren(...groupsOf(models).map((group) => this.#storedItem(group)));
    return whole;
  }

  #storedItem(group) {
    const { model, size: total, done, complete } = group;
    const extent = complete ? size(total) : `${size(done)}${total ? ` of ${size(total)}` : ''}, unfinished`;
    const remove = element('button', { type: 'button', 'aria-label': `Delete ${model.name}`, onclick: () => this.#remove(group) }, 'Delete');
    const use = element('button', { type: 'button', 'aria-label': `Use ${model.name}`, onclick: () => this.onUse?.(model) }, 'Use');
    return element('li', {}, element('span', {}, `${model.name}, ${extent}`), element('span', {}, use, ' ', remove));
  }

  async #remove({ model, keys, urls }) {
    if (!confirm(`Delete ${model.name} from this browser?`)) return;
    showError(byId('run-error'));
    if (this.#runner.loaded && this.#urls().some((url) => urls.includes(url))) this.unload();
    try {
      for (const key of keys) await this.#planner.storage.remove(key);
    } catch (error) {
      this.showError(error);
    }
    await this.listStored();
    this.#showFacts();
  }
}
