/// <reference lib="esnext.disposable" />

/** Where bytes live and what computes: `gpu:0`, `cpu`, `disk`. */
export type DeviceName = string;

/** Something to open: a .gguf, the files of a safetensors folder, or an address; outside of browsers also one of a file, `file:///…`. */
export type ModelSource = File | Iterable<File | UrlSource> | string | URL | UrlSource;

/** A file on a server. With `keep` it is downloaded once into the browser's storage and streamed from there. */
export interface UrlSource {
  url: string | URL;
  keep?: boolean;
  name?: string;
}

/** How a cache of keys, or of values, stores its numbers. */
export type CacheDType = 'f16' | 'f32' | 'q8_0' | 'q4_0';

/** How the KV cache stores its numbers: keys and values alike, or those of keys, then those of values. */
export type KvDType = CacheDType | `${CacheDType}/${CacheDType}`;

/** What a plan is made for. What is not known is refused by its name. */
export interface PlanOptions {
  /** What computes: `auto` (default), `gpu`, `gpu:0` or `cpu`. */
  device?: string;
  /** Bytes that may be used of each device, such as `{"gpu:0": 268435456}`. */
  max_memory?: Record<DeviceName, number>;
  /** Positions of the context; 0 takes the model's, less where the budgets demand it. */
  ctx_size?: number;
  /** How the KV cache stores its numbers: keys and values alike, or each, as in `q8_0/q4_0`; `f16` by default. */
  kv_dtype?: KvDType;
  /** Slots that streamed weights pass through. */
  slots?: number;
  /** Tokens of a prompt that go into one forward, at most. */
  ubatch_size?: number;
  /** Whether texts become vectors, in place of answers: for `embeddings.create`. */
  embeddings?: boolean;
  /** Whether experts that do not fit pass through a cache; `auto`, by default, where that is predicted to be the fastest. */
  expert_cache?: 'auto' | 'on' | 'off';
  /**
   * Whether devices that were never measured are measured first, in about a second, and their rates kept for later visits; by default
   * they are. With `false`, typical rates stand for what is not known.
   */
  measure?: boolean;
  /** Who computes with experts that are not in the cache: both in shares that end together (`auto`), the adapter, or the host. */
  expert_misses?: 'auto' | 'upload' | 'host';
}

export interface DeviceSpec {
  device: DeviceName;
  name: string;
  driver: string;
  kind: 'discrete' | 'integrated' | 'virtual' | 'software' | 'other' | null;
  capacity: number | null;
  capacity_source: string;
  limits: { max_buffer_bytes: number; max_binding_bytes: number; storage_alignment: number; max_workgroups: number } | null;
  rates: Record<string, unknown>;
}

/** What `tierflow inspect --json` prints. */
export interface Inspection {
  config: { name: string; n_layers: number; context_length: number; vocab_size: number; [key: string]: unknown };
  n_parameters: number;
  size_bytes: number;
  n_tensors: number;
  bytes_by_dtype: Record<string, number>;
  [key: string]: unknown;
}

export interface DevicePlan {
  device: DeviceName;
  name: string;
  budget: number | null;
  budget_source: string;
  used: { weights: number; kv_cache: number; activations: number; slots: number; staging: number; expert_cache?: number };
  n_units: number;
  n_executed: number;
  ring: { n_slots: number; slot_bytes: number; lookahead: number; upload: string } | null;
  streamed_bytes: number;
}

export interface UnitPlan {
  name: string;
  kind: 'embedding' | 'head' | { attention: { layer: number } } | { feed_forward: { layer: number } }
    | { layer: { layer: number } };
  stored_on: DeviceName;
  execute_on: DeviceName;
  size_bytes: number;
  chunks: { start: number; end: number };
}

/** Where every weight lives, who computes with it, and what memory that takes. */
export interface Plan {
  devices: DevicePlan[];
  units: UnitPlan[];
  chunks: { unit: number; stored_on: DeviceName; size_bytes: number }[];
  ctx_size: number;
  ctx_size_model: number;
  n_seqs: number;
  kv_dtype: KvDType;
}

/** How long a forward should take, and what takes it. */
export interface Prediction {
  workload: { n_tokens: number };
  secs: number;
  stall_secs: number;
  streamed_bytes: number;
  devices: { device: DeviceName; compute_secs: number; upload_secs: number; streamed_bytes: number }[];
  fetch_secs: number;
  fetched_bytes: number;
  /** Whether the rates that it rests on were measured: `measured`, `partly_assumed` or `assumed`. */
  rates: 'measured' | 'partly_assumed' | 'assumed';
}

export interface Forecast {
  prefill: Prediction;
  decode: Prediction;
}

export interface Planned {
  plan: Plan;
  /** The tier map as the command line prints it. */
  text: string;
  forecast: Forecast;
  explanation: unknown;
  /** The equal command line. */
  command: string;
}

export interface Progress {
  /** `measure`: this machine is measured, once. `download`: into the browser's storage. `load`: onto the devices. */
  stage: 'measure' | 'download' | 'load';
  done: number;
  /** Bytes; `null` where a server does not send it. */
  total: number | null;
}

/** For whatever asks the worker: raised, it ends what is asked. */
export interface Stoppable {
  signal?: AbortSignal;
}

export interface LoadOptions extends PlanOptions, Stoppable {
  onProgress?: (progress: Progress) => void;
  /** A LoRA adapter: `adapter_model.safetensors` and `adapter_config.json`, as `train` and PEFT have them, or a GGUF file of llama.cpp's. */
  adapter?: File | Iterable<File>;
  /** What it is multiplied by, besides its own scaling; 1 by default. */
  lora_scale?: number;
}

/** A text that is learnt: of a chat or of a completion the answers, of a text all. */
export type TrainingRecord = { messages: ChatMessage[] } | { prompt: string; completion: string } | { text: string };

/** The options of `tierflow train`, by the same names and defaults. */
export interface TrainOptions extends Stoppable {
  device?: string;
  max_memory?: Record<DeviceName, number>;
  measure?: boolean;
  /** Times to go through the records; 1 by default. */
  epochs?: number;
  /** Steps in all, whatever `epochs` says. */
  steps?: number;
  /** Records that are computed together; 1 by default. */
  batch?: number;
  /** Batches of a step. */
  accumulate?: number;
  /** Tokens of a record, at most (512); longer ones are left out, or cut with `truncate`. */
  seq_len?: number;
  truncate?: boolean;
  packing?: boolean;
  train_on?: 'answers' | 'all';
  /** The greatest learning rate; 0.0002 by default. */
  lr?: number;
  scheduler?: 'linear' | 'cosine' | 'constant';
  warmup?: number;
  optimizer?: 'adamw' | 'sgd';
  weight_decay?: number;
  grad_clip?: number;
  lora_r?: number;
  lora_alpha?: number;
  /** Ends of the names of layers that learn, as `q_proj`; all by default. */
  target?: string[];
  /** Ends of the names of norms whose own weights learn, as `norm`; none by default. */
  modules_to_save?: string[];
  /** How frozen matrices that are stored in F32 are held; `no` by default, as they are. */
  mixed_precision?: 'no' | 'fp16' | 'bf16';
  dropout?: number;
  seed?: number;
  onProgress?: (progress: Progress | TrainingBegins) => void;
  onStep?: (report: TrainingStep) => void;
}

/** What is trained, told before the first step. */
export interface TrainingBegins extends TrainingSize {
  stage: 'train';
}

export interface TrainingSize {
  n_steps: number;
  n_records: number;
  /** Records that were left out, being too long. */
  n_too_long: number;
  n_truncated: number;
  /** Values that are trained, beside so many layers. */
  n_values: number;
  n_layers: number;
  /** The GPU that computes, with the bytes of weights that stay there and that stream; `null` where the cpu does. */
  gpu: { name: string; resident: number; streamed: number } | null;
}

/** What a step did, as `tierflow train --json` prints it. */
export interface TrainingStep {
  step: number;
  epoch: number;
  /** `null` where the step was skipped, since it was no number. */
  loss: number | null;
  grad_norm: number | null;
  learning_rate: number;
  n_tokens: number;
  secs: number;
  /** Bytes of weights that came to what computes. */
  streamed_bytes: number;
  is_skipped: boolean;
}

export interface Trained extends TrainingSize {
  steps: TrainingStep[];
  /** `adapter_model.safetensors` and `adapter_config.json`, as PEFT has them: for `load`, for `tierflow run --lora`, for PEFT. */
  adapter: File[];
}

export interface Loaded {
  name: string;
  plan: Plan;
}

export interface Trace {
  spans: {
    lane: 'fetch' | 'upload' | 'compute' | 'stall' | 'experts' | 'transfer' | 'readback';
    device?: DeviceName;
    chunk: number | null;
    forward: number;
    start_secs: number;
    end_secs: number;
    size_bytes: number;
  }[];
  [key: string]: unknown;
}

/** What the cached experts of a layer were asked for. */
export interface LayerExperts {
  name: string;
  /** Experts that were there. */
  n_hits: number;
  /** Experts that were not. */
  n_misses: number;
  /** Of these, the ones that the host computed with. */
  n_on_host: number;
  /** Bytes that were brought. */
  uploaded: number;
}

/** Bytes at the worst moment beside what was promised, and the memory that WebAssembly has taken. */
export interface Memory {
  devices: { device: DeviceName; peak: number; budget: number | null }[];
  wasm_bytes: number;
}

export interface Stored {
  models: { key: string; name: string; url: string; size: number | null; done: number; complete: boolean }[];
  /** Bytes that this site's storage holds, and may hold. */
  usage: number;
  quota: number;
}

export interface TextPart {
  type: 'text';
  text: string;
}

export interface ChatMessage {
  /** Any other text is refused when it is asked. */
  role: 'system' | 'developer' | 'user' | 'assistant' | 'tool' | (string & {});
  /** Parts become one text. Of an assistant that only calls there is none. */
  content?: string | TextPart[] | null;
  tool_calls?: ToolCall[];
  /** Which call a tool's message is the result of. */
  tool_call_id?: string;
  /** What an assistant's message was preceded by; chat templates decide whether the model sees it again. */
  reasoning_content?: string;
}

/** A function that the model may call. */
export interface Tool {
  type: 'function';
  function: { name: string; description?: string; parameters?: Record<string, unknown>; strict?: boolean | null };
}

export interface ToolCall {
  id: string;
  type: 'function';
  /** `arguments` is a text of JSON. */
  function: { name: string; arguments: string };
}

export type ToolChoice = 'auto' | 'none' | 'required' | { type: 'function'; function: { name: string } };

export type ResponseFormat =
  | { type: 'text' }
  | { type: 'json_object'; schema?: Record<string, unknown> }
  | { type: 'json_schema'; json_schema: { name?: string; strict?: boolean | null; schema: Record<string, unknown> } }
  | { type: 'grammar'; grammar: string };

/** What chats and texts have in common. What is not known, or not supported yet, is refused by its name, with an `InvalidArgumentError`. */
export interface AnswerRequest extends Stoppable {
  model?: string;
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean } | null;
  max_tokens?: number | null;
  max_completion_tokens?: number | null;
  /** 0 takes the most likely token each time. What is left out is the model's own. */
  temperature?: number | null;
  /** Only so many of the likeliest tokens are eligible; 0 means all. */
  top_k?: number | null;
  /** Only the likeliest tokens that together have this probability are eligible. */
  top_p?: number | null;
  /** Only tokens at least this probable, relative to the likeliest, are eligible. */
  min_p?: number | null;
  /** Divides positive and multiplies negative logits of recent tokens; 1 changes nothing. */
  repeat_penalty?: number | null;
  /** How many of the latest tokens count as recent. */
  repeat_last_n?: number | null;
  /** Subtracted from the logits of tokens that the answer has already. */
  presence_penalty?: number | null;
  /** The same, as often as it has them. */
  frequency_penalty?: number | null;
  /** Added to the logits of tokens, by their ids. */
  logit_bias?: Record<string, number> | null;
  seed?: number | null;
  stop?: string | string[] | null;
  /** What the answer must be: JSON, JSON that keeps to a schema, or a text of a grammar in llama.cpp's form. */
  response_format?: ResponseFormat | null;
  /** A grammar in llama.cpp's form, a JSON schema or a regular expression that the whole answer keeps to; at most one of these. */
  grammar?: string | null;
  json_schema?: Record<string, unknown> | null;
  regex?: string | null;
  /** Answers, made one after the other; with a seed, each has the next one. */
  n?: number | null;
}

export interface ChatRequest extends AnswerRequest {
  messages: ChatMessage[];
  /** The texts go to the model as they are, without its chat template. */
  raw?: boolean | null;
  /** The last message, one of the assistant's, is how the answer begins; it is gone on with. */
  continue_final_message?: boolean | null;
  /** Functions that the model may call; where their calls are JSON, they keep to the parameters' schemas. */
  tools?: Tool[] | null;
  tool_choice?: ToolChoice | null;
  /** Whether there may be several calls in an answer. */
  parallel_tool_calls?: boolean | null;
  /** Whether to tell how likely each token was. */
  logprobs?: boolean | null;
  /** Of how many other tokens to tell the same. */
  top_logprobs?: number | null;
}

export interface TextRequest extends AnswerRequest {
  /** Goes to the model as it is. */
  prompt: string;
  /** How likely each token was, and so many others. */
  logprobs?: number | null;
}

/** How far an answer has come, in tokens: first the prompt is read, then the answer is made. */
export interface AnswerProgress {
  stage: 'prompt' | 'answer';
  done: number;
  /** Of an answer, the most that it may have; `null` where no limit was given. */
  total: number | null;
}

export interface AnswerOptions extends Stoppable {
  onProgress?: (progress: AnswerProgress) => void;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  /** Tokens of the prompt that an earlier answer left in the KV cache. */
  prompt_tokens_details: { cached_tokens: number };
  extra: { prompt_secs: number; decode_secs: number; ttft_secs: number; tokens: number[] };
}

export interface TokenLogprob {
  token: string;
  logprob: number;
  bytes: null;
}

export interface ChatLogprobs {
  content: (TokenLogprob & { top_logprobs: TokenLogprob[] })[];
}

export type FinishReason = 'stop' | 'length' | 'tool_calls';

export interface ChatCompletion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  /** `reasoning_content` is what a model thinks before it answers. */
  choices: {
    index: number;
    message: { role: 'assistant'; content: string | null; reasoning_content?: string; tool_calls?: ToolCall[] };
    finish_reason: FinishReason;
    logprobs: ChatLogprobs | null;
  }[];
  usage: Usage;
}

/** A part of a call: the first has its id and the function's name, and the arguments of all of them together are one text of JSON. */
export interface ToolCallPart {
  /** Which call of the answer. */
  index: number;
  id?: string;
  type?: 'function';
  function: { name?: string; arguments: string };
}

export interface ChatCompletionChunk {
  id: string;
  object: 'chat.completion.chunk';
  created: number;
  model: string;
  choices: {
    index: number;
    delta: { role?: 'assistant'; content?: string; reasoning_content?: string; tool_calls?: ToolCallPart[] };
    finish_reason: FinishReason | null;
    logprobs: ChatLogprobs | null;
  }[];
  usage?: Usage;
}

export type ChatCompletionStream = AsyncGenerator<ChatCompletionChunk, void, void>;

export interface Completions {
  create(body: ChatRequest & { stream: true }, options?: AnswerOptions): Promise<ChatCompletionStream>;
  create(body: ChatRequest & { stream?: false | null }, options?: AnswerOptions): Promise<ChatCompletion>;
  create(body: ChatRequest, options?: AnswerOptions): Promise<ChatCompletion | ChatCompletionStream>;
}

export interface TextLogprobs {
  tokens: string[];
  token_logprobs: number[];
  top_logprobs: Record<string, number>[];
}

export interface TextCompletion {
  id: string;
  object: 'text_completion';
  created: number;
  model: string;
  choices: { index: number; text: string; finish_reason: FinishReason; logprobs: TextLogprobs | null }[];
  usage: Usage;
}

export interface TextCompletionChunk {
  id: string;
  object: 'text_completion';
  created: number;
  model: string;
  choices: { index: number; text: string; finish_reason: FinishReason | null; logprobs: TextLogprobs | null }[];
  usage?: Usage;
}

export type TextCompletionStream = AsyncGenerator<TextCompletionChunk, void, void>;

export interface TextCompletions {
  create(body: TextRequest & { stream: true }, options?: AnswerOptions): Promise<TextCompletionStream>;
  create(body: TextRequest & { stream?: false | null }, options?: AnswerOptions): Promise<TextCompletion>;
  create(body: TextRequest, options?: AnswerOptions): Promise<TextCompletion | TextCompletionStream>;
}

export interface EmbeddingRequest extends Stoppable {
  input: string | string[];
  model?: string;
  /** So many first values of each, scaled to the length 1 again. */
  dimensions?: number | null;
  encoding_format?: 'float';
}

export interface EmbeddingList {
  object: 'list';
  data: { object: 'embedding'; index: number; embedding: number[] }[];
  model: string;
  usage: { prompt_tokens: number; total_tokens: number };
}

export interface Embeddings {
  create(body: EmbeddingRequest, options?: Stoppable & { onProgress?: (progress: { done: number; total: number }) => void }): Promise<EmbeddingList>;
}

/** A model as a repository of the hub has it. */
export interface HubModel {
  /** Such as `Q4_K_M`; `safetensors` where there is no GGUF. */
  quant: string;
  /** Bytes; `null` where the hub does not tell. */
  size: number | null;
  source: UrlSource[];
}

export interface HubOptions extends Stoppable {
  /** Another hub than Hugging Face's, such as a mirror of it. */
  hub?: string;
}

/**
 * A model of the hub as a source: `org/name`, `org/name:Q4_K_M`, with `hf:` or the whole address before it, also that of a file's page.
 * Of several quantisations the one that is asked for, or a usual one.
 */
export function fromHub(name: string, options?: HubOptions & { quant?: string; keep?: boolean }): Promise<ModelSource>;

/** The models that a repository holds, what suits most first. */
export function listHub(name: string, options?: HubOptions): Promise<{ repo: string; models: HubModel[] }>;

/** What a text calls on the hub; `null` where it is no such name, but perhaps the address of a file elsewhere. */
export function parseHubName(text: string): { repo: string; quant?: string; revision?: string; file?: string } | null;

/** What the file at an address is called. */
export function nameOfUrl(url: string | URL): string;

/** What `init` may be told. */
export interface InitOptions {
  /** Address of the wasm with which one thread computes. */
  wasm?: string | URL;
  /** Address of the wasm with which several do. Where only `wasm` is given, one thread computes. */
  wasmThreads?: string | URL;
  /** Address of the worker's script. */
  worker?: string | URL;
  /**
   * Threads that share what the processor computes, in Node and where the page is isolated from other origins (`crossOriginIsolated`): without
   * this, those that the machine runs at once, eight at most. Other pages compute with one. The answers are the same.
   */
  threads?: number;
}

/**
 * Fetches and compiles the engine, once for all engines of the page; an engine does so by itself where it was not done. Engines that
 * have started stay as they are.
 */
export function init(overrides?: InitOptions): Promise<void>;

export interface EngineOptions {
  /**
   * A name: all tabs of the origin whose engines have it compute in one worker, which one of the tabs hosts. When that tab goes, another
   * takes over. On plain http:// an engine has a worker of its own all the same.
   */
  shared?: string;
}

/** Plans and runs one model at a time, in a worker of its own, or in one that tabs share. */
export class Engine {
  constructor(options?: EngineOptions);
  readonly loaded: Loaded | null;
  readonly chat: { readonly completions: Completions };
  /** Continues texts as they are. */
  readonly completions: TextCompletions;
  /** Of a model that was loaded with `embeddings: true`. */
  readonly embeddings: Embeddings;
  readonly storage: {
    list(options?: Stoppable): Promise<Stored>;
    remove(key: string, options?: Stoppable): Promise<void>;
    /** Asks the browser to keep models when its disk is full; `load` does, where one is to be kept. */
    persist(): Promise<boolean>;
  };
  /** With `measure`, all of their rates are measured anew, in several seconds. */
  devices(options?: Stoppable & { measure?: boolean }): Promise<DeviceSpec[]>;
  inspect(source: ModelSource, options?: Stoppable): Promise<Inspection>;
  /** `devices` is the text of a devices file; the plan is then for that machine. */
  plan(source: ModelSource, options?: PlanOptions & Stoppable & { onProgress?: (progress: Progress) => void }, devices?: string): Promise<Planned>;
  load(source: ModelSource, options?: LoadOptions): Promise<Loaded>;
  /** Trains a LoRA adapter in this browser; what was loaded before is given up first. */
  train(source: ModelSource, records: string | Iterable<TrainingRecord>, options?: TrainOptions): Promise<Trained>;
  trace(nForwards?: number): Promise<Trace>;
  /** The text of a file for ui.perfetto.dev. */
  perfetto(): Promise<string>;
  memory(): Promise<Memory>;
  /** Of models whose experts pass through a cache; otherwise empty. */
  experts(): Promise<LayerExperts[]>;
  /** Gives up the model and the GPU, and ends what is under way with an `AbortError`. The engine can be used again. */
  close(): void;
  /** `using engine = new Engine()` closes it, where the browser has `Symbol.dispose`. */
  [Symbol.dispose](): void;
}

export type WebGpuCheck =
  | { ok: true; name: string; isSoftware: boolean; limits: Record<string, number>; features: string[] }
  | { ok: false; step: string; reason: string; advice: string };

/** Whether this browser can compute on a GPU; where it cannot, which step failed and what to do. */
export function checkWebGpu(): Promise<WebGpuCheck>;

/** The base of all errors of the package; `name` distinguishes them. */
export class TierflowError extends Error {}
/** There is no WebGPU here, or no adapter. */
export class NoWebGpuError extends TierflowError {}
/** A limit of the adapter is in the way. */
export class LimitError extends TierflowError {}
/** A budget is too small. */
export class DoesNotFitError extends TierflowError {
  readonly device: DeviceName;
  readonly needed: number;
  readonly available: number;
}
/** The GPU was taken away; load again, perhaps with a smaller budget. */
export class DeviceLostError extends TierflowError {}
/** A file is no model, is damaged, or is of a kind that is not supported. */
export class InvalidFileError extends TierflowError {}
/** An option is out of its domain, or not known. */
export class InvalidArgumentError extends TierflowError {
  readonly option?: string;
}
/** A conversation needs `needed` positions, and the context has `available`. */
export class ContextFullError extends InvalidArgumentError {
  readonly needed: number;
  readonly available: number;
}
/** A `signal` was raised, or the engine was closed. */
export class AbortError extends DOMException {
  readonly name: 'AbortError';
  /** How far an answer came that had begun. */
  readonly usage?: Usage;
  /** What was learnt until training was stopped. */
  readonly trained?: Trained;
}
/** The engine was asked to stop. */
export class InterruptedError extends TierflowError {}
/** A server did not give what was asked for. */
export class ServerError extends TierflowError {
  readonly url?: string;
  readonly status?: number;
}
/** The browser's storage is full. */
export class StorageFullError extends TierflowError {
  /** `null` where it was not known yet. */
  readonly needed: number | null;
  readonly available: number;
}
/** A stored model is in use by another tab. */
export class FileBusyError extends TierflowError {}
/** The tab whose shared engine answered was closed, or its engine ended, while this was answered; it can be asked again. */
export class HostLostError extends TierflowError {}
