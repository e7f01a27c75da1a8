// Loading with progress and cancel, and the browser's storage.

import { byId, element, showError } from './elements.js';
import { bytes, duration, percent } from './format.js';
import { executorsOf } from './tier-map.js';

export class RunView {
  #runner;
  #planner;
  #plan;
  #onLoaded;
  #source = null;
  #cancel = null;
  /** The models of the list as it is drawn. */
  #listed = '';

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
    this.#listStored();
  }

  /** Shows a model that can be loaded: `{files}` or `{url}`, and its size. */
  async show(source, inspection) {
    this.#source = { ...source, size: inspection.size_bytes, name: source.name };
    byId('run').hidden = false;
    byId('keep-label').hidden = !source.url;
    showError(byId('run-error'));
    byId('run-said').textContent = '';
    await this.#listStored();
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
    byId('load').disabled = !planned || !this.#source || isElsewhere || this.#cancel !== null;
    byId('load').title = isElsewhere ? 'The plan is for another machine' : '';
  }

  async load() {
    const keep = byId('keep').checked;
    const source = this.#source.url ? { url: this.#source.url, keep, name: this.#source.name } : this.#source.files;
    const controller = (this.#cancel = new AbortController());
    const begin = performance.now();
    this.#onLoaded(null);
    this.#show('loading');
    showError(byId('run-error'));
    try {
      const loaded = await this.#runner.load(source, { ...this.#plan.options, signal: controller.signal, onProgress: (progress) => this.#progress(progress, begin) });
      byId('run-said').textContent = `Loaded in ${duration((performance.now() - begin) / 1000)}; ${executorsOf(loaded.plan)} will compute.`;
      this.#show('loaded');
      this.#onLoaded(loaded);
    } catch (error) {
      this.#show('idle');
      if (error.name === 'AbortError') byId('run-said').textContent = 'Cancelled. What was downloaded is kept, and goes on from there.';
      else this.showError(error);
    } finally {
      this.#cancel = null;
      this.planChanged(this.#plan.planned);
      await this.#listStored();
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
    const verb = stage === 'download' ? 'Downloading' : 'Loading';
    if (total) byId('bar').value = done / total;
    else byId('bar').removeAttribute('value');
    const rate = done / ((performance.now() - begin) / 1000);
    const left = total && rate > 0 ? `, ${duration((total - done) / rate)} left` : '';
    byId('progress-text').textContent = `${verb}: ${bytes(done)}${total ? ` of ${bytes(total)} (${percent(done / total)})` : ''}${stage === 'download' ? left : ''}`;
  }

  #showFacts() {
    if (!this.#source) return;
    const { name, size, url } = this.#source;
    const stored = this.stored?.models.find((model) => model.url === url);
    const where = {
      file: 'from your disk; nothing is copied',
      whole: 'stored in this browser',
      part: `${bytes(stored?.done ?? 0)} of it stored; the download goes on from there`,
      none: byId('keep').checked ? 'not stored yet' : 'from the server, range by range',
    };
    const state = !url ? 'file' : stored?.complete ? 'whole' : stored?.done ? 'part' : 'none';
    byId('run-facts').textContent = `${name}, ${bytes(size)} of weights, ${where[state]}.`;
    byId('load').textContent = state === 'none' && byId('keep').checked ? `Download ${bytes(size)} and load` : 'Load';
  }

  async #listStored() {
    try {
      this.stored = await this.#planner.storage.list();
    } catch (error) {
      byId('storage-facts').textContent = error.message;
      byId('keep').checked = false;
      byId('keep').disabled = true;
      return;
    }
    const { models, usage, quota } = this.stored;
    const share = quota > 0 ? `${bytes(usage)} used of ${bytes(quota)} that the browser allows.` : '';
    byId('storage-facts').textContent = `${models.length === 0 ? 'No model is stored. ' : ''}${share}`;
    // What has not changed is not drawn anew: a button that is just pressed, or has the focus, would be gone.
    const listed = JSON.stringify(models);
    if (listed === this.#listed) return;
    this.#listed = listed;
    byId('stored').replaceChildren(...models.map((model) => this.#storedItem(model)));
  }

  #storedItem(model) {
    const size = model.complete ? bytes(model.size) : `${bytes(model.done)}${model.size ? ` of ${bytes(model.size)}` : ''}, unfinished`;
    const remove = element('button', { type: 'button', 'aria-label': `Delete ${model.name}`, onclick: () => this.#remove(model) }, 'Delete');
    const use = element('button', { type: 'button', 'aria-label': `Use ${model.name}`, onclick: () => this.onUse?.(model) }, 'Use');
    return element('li', {}, element('span', {}, `${model.name}, ${size}`), element('span', {}, use, ' ', remove));
  }

  async #remove({ key, name, url }) {
    if (!confirm(`Delete ${name} from this browser?`)) return;
    showError(byId('run-error'));
    if (this.#runner.loaded && this.#source?.url === url) this.unload();
    try {
      await this.#planner.storage.remove(key);
    } catch (error) {
      this.showError(error);
    }
    await this.#listStored();
    this.#showFacts();
  }
}
