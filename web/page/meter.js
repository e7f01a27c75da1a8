// What is measured and said of an answer while it comes.

/** Counts tokens as they come. */
export class Meter {
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
export class Spoken {
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
