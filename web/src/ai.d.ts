import type { EmbeddingModel, LanguageModel } from 'ai';

import type { Engine } from './index.js';

/**
 * The model that an engine has loaded, for `generateText`, `streamText` and what is built on them in ai 6 and 7. Options of the engine's own, such as
 * `min_p` or `grammar`, go into `providerOptions.tierflow`.
 *
 * @param modelId what `ai` calls it; `tierflow` by default
 */
export function languageModel(engine: Engine, modelId?: string): Exclude<LanguageModel, string>;

/** The model that an engine has loaded with `embeddings: true`, for `embed` and `embedMany`. */
export function embeddingModel(engine: Engine, modelId?: string): Exclude<EmbeddingModel, string>;
