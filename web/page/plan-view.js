// The plan before anything is loaded: options in, tier map, rates and command line out. Plans run in an engine of their own,
// so that an answer under way is not held up.

import { byId, element, showError, showFigures } from './elements.js';
import { bytes, duration, parseBytes, tokensPerSec } from './format.js';
import { Slider, sizeSteps } from './slider.js';
import { drawLegend, drawTiers, executorsOf, fillTable, titleOf } from './tier-map.js';

const MIB = 2 ** 20;
/** A plan that was said aloud is not said again while a slider still moves. */
const SAY_MS = 900;

export class PlanView {
  #engine;
  #onPlan;
  #source = null;
  #devices = [];
  #devicesText;
  #planned = null;
  /** Until all wishes are planned. */
  #planning = null;
  #isStale = false;
  #sayTimer = 0;
  #gpu;
  #host;
  #context;

  /** @param {import('../index.js').Engine} engine @param {(planned: object | null) => void} onPlan called with every new plan */
  constructor(engine, onPlan) {
    this.#engine = engine;
    this.#onPlan = onPlan;
    const change = () => this.refresh();
    const size = { text: (value) => (value === null ? 'no limit' : bytes(value)), parse: parseBytes, onChange: change };
    this.#gpu = new Slider(byId('gpu-budget'), { label: 'GPU budget', ...size });
    this.#host = new Slider(byId('host-budget'), { label: 'Host budget', ...size });
    this.#context = new Slider(byId('context'), {
      label: 'Context',
      text: (value) => (value === null ? 'automatic' : String(value)),
      parse: (text) => (/^\d+$/.test(text.trim()) ? Number(text) : null),
      onChange: change,
    });
    for (const id of ['kv-dtype', 'expert-cache', 'device']) byId(id).addEventListener('change', change);
    byId('options').addEventListener('submit', (event) => event.preventDefault());
    byId('copy').addEventListener('click', () => this.#copy());
    byId('choose-devices').addEventListener('click', () => byId('devices-file').click());
    byId('devices-file').addEventListener('change', ({ target }) => target.files[0] && this.useDevicesFile(target.files[0]));
    byId('own-devices').addEventListener('click', () => this.#useOwnDevices());
    new ResizeObserver(() => this.#draw()).observe(byId('tiers'));
  }

  /** What the command line's options would be. */
  get options() {
    const max_memory = {};
    const gpu = this.#devices.find(({ device }) => device.startsWith('gpu'));
    if (gpu && this.#gpu.value !== null) max_memory[gpu.device] = this.#gpu.value;
    if (this.#host.value !== null) max_memory.cpu = this.#host.value;
    const chosen = { ctx_size: this.#context.value, kv_dtype: byId('kv-dtype').value, expert_cache: byId('expert-cache').value };
    const named = Object.entries(chosen).filter(([, value]) => value);
    return { device: byId('device').value, max_memory, ...Object.fromEntries(named) };
  }

  /** The last plan that could be made for what is chosen; `null` where it could not. */
  get planned() {
    return this.#planned;
  }

  /** Whether the plan is for another machine, on which nothing can be loaded from here. */
  get isForAnotherMachine() {
    return this.#devicesText !== undefined;
  }

  /** Makes the GPU budget smaller, after the GPU was lost. */
  setGpuBudget(size) {
    this.#gpu.set(size);
    return this.refresh();
  }

  /**
   * Shows a model of which the headers were read.
   * @param {{gpu?: number, cpu?: number, context?: number, kv?: string, device?: string}} [wishes] options that an address asks for; of
   *   others the budgets stay as they are
   */
  async show(source, inspection, wishes = {}) {
    this.#source = source;
    byId('plan').hidden = false;
    if (this.#devices.length === 0) this.#setDevices(await this.#engine.devices());
    const longest = inspection.config.context_length;
    this.#context.setSteps([null, ...sizeSteps(128, longest).filter((step) => step !== null), longest]);
    this.#context.set(null);
    byId('expert-cache-label').hidden = !inspection.config.variant?.experts;
    if (byId('expert-cache-label').hidden) byId('expert-cache').value = '';
    this.#wish(wishes);
    await this.refresh();
  }

  /** Takes the options that an address asks for, and no others. */
  async apply(wishes) {
    this.#gpu.set(null);
    this.#host.set(null);
    this.#context.set(null);
    byId('kv-dtype').value = '';
    byId('expert-cache').value = '';
    byId('device').value = 'auto';
    this.#wish(wishes);
    await this.refresh();
  }

  #wish({ gpu, cpu, context, kv, experts, device }) {
    if (gpu && !byId('gpu-budget').hidden) this.#gpu.set(gpu);
    if (cpu) this.#host.set(cpu);
    if (context) this.#context.set(context);
    if (kv) byId('kv-dtype').value = kv;
    if (experts) byId('expert-cache').value = experts;
    if (device && [...byId('device').options].some(({ value }) => value === device)) byId('device').value = device;
  }

  /** What is chosen, as an address has it. */
  get wishes() {
    const wishes = { gpu: this.#gpu.value, cpu: this.#host.value, context: this.#context.value, kv: byId('kv-dtype').value, experts: byId('expert-cache').value, device: byId('device').value };
    return Object.fromEntries(Object.entries(wishes).filter(([, value]) => value));
  }

  /** Shows nothing: no model is chosen. */
  hide() {
    this.#source = null;
    this.#planned = null;
    byId('plan').hidden = true;
  }

  /** Plans for the machine that a file describes. */
  async useDevicesFile(file) {
    const text = await file.text();
    try {
      const devices = parsed(text).devices;
      if (!Array.isArray(devices)) throw new TypeError('it has no list of devices');
      this.#devicesText = text;
      this.#setDevices(devices);
    } catch (error) {
      return showError(byId('plan-error'), { name: 'InvalidFileError', message: `${file.name}: ${error.message}; write it with \`tierflow devices --json\`` });
    }
    byId('machine').textContent = `For the machine of ${file.name}.`;
    byId('own-devices').hidden = false;
    await this.refresh();
  }

  /** Plans anew. While a plan is made, only the latest wish is kept; resolves once that is planned. */
  async refresh() {
    if (!this.#source) return;
    this.#isStale = true;
    this.#planning ??= this.#planAll().finally(() => (this.#planning = null));
    await this.#planning;
  }

  async #planAll() {
    byId('planned').ariaBusy = 'true';
    while (this.#isStale) {
      this.#isStale = false;
      await this.#planOnce();
    }
    byId('planned').ariaBusy = 'false';
  }

  async #planOnce() {
    const source = this.#source;
    if (!source) return;
    try {
      const planned = await this.#engine.plan(source, { ...this.options, onProgress: tellMeasuring }, this.#devicesText);
      // Another model may have been chosen meanwhile, or none.
      if (source !== this.#source) return;
      this.#planned = planned;
      showError(byId('plan-error'));
    } catch (error) {
      if (source !== this.#source) return;
      this.#planned = null;
      showError(byId('plan-error'), error, this.#remedies(error));
    }
    byId('model-said').textContent = '';
    byId('planned').hidden = !this.#planned;
    if (this.#planned) this.#draw();
    this.#onPlan(this.#planned);
  }

  /** What can be done about a budget that is too small: take the one that is needed. */
  #remedies({ name, device, needed }) {
    if (name !== 'DoesNotFitError' || !needed) return [];
    const slider = device === 'cpu' ? this.#host : device?.startsWith('gpu') ? this.#gpu : null;
    if (!slider) return [];
    const enough = Math.ceil(needed / MIB) * MIB;
    const take = () => {
      slider.set(enough);
      this.refresh();
    };
    return [[`Use ${bytes(enough)}`, take]];
  }

  async #useOwnDevices() {
    this.#devicesText = undefined;
    byId('own-devices').hidden = true;
    byId('machine').textContent = 'For this machine.';
    this.#setDevices(await this.#engine.devices());
    await this.refresh();
  }

  #setDevices(devices) {
    this.#devices = devices;
    const gpu = devices.find(({ device }) => device.startsWith('gpu'));
    const host = devices.find(({ device }) => device === 'cpu');
    byId('gpu-budget').hidden = !gpu;
    this.#gpu.setSteps(sizeSteps(16 * MIB, gpu?.capacity ?? 2 ** 32));
    this.#host.setSteps(sizeSteps(64 * MIB, host?.capacity ?? 2 ** 34));
    if (!gpu) this.#gpu.set(null);
    const names = ['auto', ...devices.map(({ device }) => device).filter((device) => device !== 'disk')];
    const titles = Object.fromEntries(devices.map((device) => [device.device, titleOf(device)]));
    const options = names.map((name) => element('option', { value: name }, titles[name] ?? 'automatic'));
    byId('device').replaceChildren(...options);
  }

  #draw() {
    if (!this.#planned) return;
    const { plan, text, forecast, explanation, command } = this.#planned;
    showFigures(byId('rates'), figuresOf(plan, forecast));
    drawTiers(byId('tiers'), plan, (words) => (byId('block').textContent = words));
    drawLegend(byId('legend'), plan);
    fillTable(byId('plan-table'), plan);
    byId('hints').replaceChildren(...hintsOf(plan, forecast, explanation).map((hint) => element('li', {}, hint)));
    byId('command').textContent = command;
    byId('plan-text').textContent = text;
    byId('copied').textContent = '';
    clearTimeout(this.#sayTimer);
    this.#sayTimer = setTimeout(() => (byId('plan-said').textContent = figuresOf(plan, forecast).map((pair) => pair.join(' ')).join(', ')), SAY_MS);
  }

  async #copy() {
    const said = byId('copied');
    try {
      await navigator.clipboard.writeText(byId('command').textContent);
      said.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(byId('command'));
      said.textContent = 'Marked: copy it with your keyboard';
    }
  }
}

/** Says that this machine is measured; what is said next takes its place. */
function tellMeasuring() {
  byId('model-said').textContent = 'Measuring this machine…';
}

/** What takes most of a forward's time, and how long. */
export function boundOf({ devices, fetch_secs }) {
  const compute = devices.reduce((sum, { compute_secs }) => sum + compute_secs, 0);
  const parts = [{ name: 'compute', secs: compute }, ...devices.map(({ device, upload_secs }) => ({ name: `upload to ${device}`, secs: upload_secs })), { name: 'disk', secs: fetch_secs }];
  return parts.reduce((most, part) => (part.secs > most.secs ? part : most));
}

/** What a description of a machine holds. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new TypeError('it is no JSON');
  }
}

function figuresOf(plan, { prefill, decode }) {
  const rate = ({ workload, secs }) => tokensPerSec(secs > 0 ? workload.n_tokens / secs : 0);
  const bound = boundOf(decode);
  return [
    ['Decode, predicted', rate(decode)],
    ['Prefill, predicted', rate(prefill)],
    ['Computes', executorsOf(plan)],
    ['Bound by', `${bound.name}, ${duration(bound.secs)}`],
    ['Streams per token', bytes(decode.streamed_bytes)],
  ];
}

function hintsOf(plan, { decode }, explanation) {
  const own = decode.workload.n_tokens / decode.secs;
  const more = (explanation?.with_more ?? []).map(({ device, bytes: size, forecast }) => {
    const rate = forecast.decode.workload.n_tokens / forecast.decode.secs;
    return `${bytes(size)} more on ${device}: ${rate > own * 1.01 ? `decode ${tokensPerSec(rate)}` : 'brings nothing'}`;
  });
  const context = plan.ctx_size < plan.ctx_size_model ? [`Context ${plan.ctx_size} of ${plan.ctx_size_model}, KV cache in ${plan.kv_dtype}`] : [];
  const rates = decode.rates === 'measured' ? [] : [`Rates are ${decode.rates}, not measured on this machine`];
  return [...context, ...more, ...rates];
}
