// Texts as vectors in OpenAI's shape over the worker's `embed`.

import { invalid } from './invalid.js';

/** `engine.embeddings`. */
export class Embeddings {
  #embed;
  #modelName;

  /** @param {(request: object, options: object) => Promise<object[]>} embed @param {() => string} modelName */
  constructor(embed, modelName) {
    this.#embed = embed;
    this.#modelName = modelName;
  }

  /**
   * The embeddings of `input`, a text or a list of texts; with `dimensions`, so many first values of each, scaled to the length 1 again.
   * `onProgress` is called with how many texts are done.
   */
  async create(body, { signal = body?.signal, onProgress = () => {} } = {}) {
    const { input, dimensions, encoding_format = 'float', model } = body ?? {};
    const texts = [input].flat();
    if (texts.length === 0 || !texts.every((text) => typeof text === 'string' && text !== '')) throw invalid('input', 'give a text, or a list of texts that are not empty');
    if (encoding_format !== 'float') throw invalid('encoding_format', `\`${encoding_format}\` is not supported; leave it out`);
    const found = await this.#embed({ input: texts }, { signal, onEvent: onProgress });
    const width = found[0]?.embedding.length ?? 0;
    if (dimensions !== undefined && dimensions !== null && !(Number.isSafeInteger(dimensions) && dimensions > 0 && dimensions <= width)) {
      throw invalid('dimensions', `give a whole number from 1 to ${width}`);
    }
    const nTokens = found.reduce((sum, { n_tokens }) => sum + n_tokens, 0);
    return {
      object: 'list',
      data: found.map(({ embedding }, index) => ({ object: 'embedding', index, embedding: shortened(embedding, dimensions ?? width) })),
      model: model ?? this.#modelName(),
      usage: { prompt_tokens: nTokens, total_tokens: nTokens },
    };
  }
}

/** So many first values, of the length 1. */
function shortened(embedding, n) {
  if (n === embedding.length) return embedding;
  const first = embedding.slice(0, n);
  const length = Math.hypot(...first);
  return length > 0 ? first.map((value) => value / length) : first;
}
