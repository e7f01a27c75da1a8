// The timeline of the last tokens while an answer is made, at a calm pace; its badge, and its two kinds of file.

import { byId, saveAs } from './elements.js';
import { drawExperts, expertsInWords, since } from './experts.js';
import { duration, percent } from './format.js';
import { coloursOf, drawTimeline } from './timeline.js';
import { nameOf } from './tier-map.js';

const EVERY_MS = 400;
const FILE_WIDTH = 980;

export class TimelineView {
  #engine;
  #onMeasured;
  #plan = null;
  #spans = [];
  /** What experts were asked for by the answer before, and up to now. */
  #experts = { before: [], now: [] };
  #timer = 0;
  #isPaused = false;

  /** @param {object} engine @param {(bytesPerToken: number) => void} onMeasured */
  constructor(engine, onMeasured) {
    this.#engine = engine;
    this.#onMeasured = onMeasured;
    byId('n-tokens').addEventListener('change', () => this.#refresh());
    byId('pause').addEventListener('click', () => this.#pause());
    byId('save-perfetto').addEventListener('click', () => this.#savePerfetto());
    byId('save-svg').addEventListener('click', () => this.#saveSvg());
    new ResizeObserver(() => this.#draw()).observe(byId('lanes'));
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#draw());
  }

  setLoaded(loaded) {
    this.#plan = loaded?.plan ?? this.#plan;
    this.#experts = { before: [], now: [] };
    byId('save-perfetto').disabled = !loaded;
  }

  /** Follows an answer for as long as it is made. */
  setBusy(isBusy) {
    clearInterval(this.#timer);
    if (isBusy) this.#experts.before = this.#experts.now;
    if (isBusy) this.#timer = setInterval(() => this.#isPaused || this.#refresh(), EVERY_MS);
    else if (!this.#isPaused) this.#refresh();
  }

  async #refresh() {
    try {
      const { spans } = await this.#engine.trace(Number(byId('n-tokens').value));
      this.#spans = spans;
      this.#experts.now = await this.#engine.experts();
    } catch {
      return; // Between two models there is nothing to draw.
    }
    this.#draw();
    this.#drawExperts();
  }

  #drawExperts() {
    const layers = since(this.#experts.now, this.#experts.before);
    const words = expertsInWords(layers);
    byId('experts').hidden = !words;
    if (!words) return;
    byId('experts-said').textContent = words;
    byId('expert-layers').replaceChildren(drawExperts(layers, coloursOf()));
  }

  #draw() {
    const drawn = this.#picture(Math.max(280, Math.floor(byId('lanes').clientWidth)), coloursOf());
    if (!drawn) return;
    const { picture, summary } = drawn;
    byId('timeline').hidden = false;
    byId('open-activity').disabled = false;
    byId('lanes').replaceChildren(picture);
    byId('badge').textContent = `bound by ${summary.bound}`;
    const moving = summary.busy.fetch + summary.busy.upload;
    const hidden = moving > 0 ? `${percent(summary.overlapped)} of the moving is hidden behind the computation; ` : 'Nothing streams; ';
    byId('lanes-said').textContent = `${hidden}the device computes for ${duration(summary.busy.compute)} of ${duration(summary.to - summary.from)}.`;
    this.#onMeasured(summary.bytesPerForward);
  }

  #picture(width, colours) {
    const nForwards = Number(byId('n-tokens').value);
    return drawTimeline(this.#spans, { width, nForwards, colours, nameOf: (chunk) => this.#nameOf(chunk) });
  }

  #nameOf(chunk) {
    const found = this.#plan?.chunks[chunk];
    return found ? nameOf(this.#plan, found) : `chunk ${chunk}`;
  }

  #pause() {
    this.#isPaused = !this.#isPaused;
    byId('pause').setAttribute('aria-pressed', String(this.#isPaused));
    if (!this.#isPaused) this.#refresh();
  }

  async #savePerfetto() {
    saveAs('tierflow-trace.json', 'application/json', await this.#engine.perfetto());
  }

  #saveSvg() {
    const drawn = this.#picture(FILE_WIDTH, coloursOf());
    if (drawn) saveAs('tierflow-timeline.svg', 'image/svg+xml', new XMLSerializer().serializeToString(drawn.picture));
  }
}
