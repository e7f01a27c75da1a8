/** Where bytes live and what computes: `gpu:0`, `cpu`, `disk`. */
export type DeviceName = string;

/** Something to open: a .gguf, the files of a safetensors folder, or an address. */
export type ModelSource = File | Iterable<File | UrlSource> | string | URL | UrlSource;

/** A file on a server. With `keep` it is downloaded once into the browser's storage and streamed from there. */
export interface UrlSource {
  url: string | URL;
  keep?: boolean;
  name?: string;
}

/** What a plan is made for; the names are those of the command line. */
export interface PlanOptions {
  /** What computes: `auto` (default), `gpu`, `gpu:0` or `cpu`. */
  device?: string;
  /** Bytes that may be used of each device, such as `{"gpu:0": 268435456}`. */
  max_memory?: Record<DeviceName, number>;
  /** Positions of the context; 0 takes the model's, less where the budgets demand it. */
  ctx_size?: number;
  /** How the KV cache stores its numbers. */
  kv_dtype?: 'f16' | 'f32';
  /** Slots that streamed weights pass through. */
  slots?: number;
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

/** What `tierflow inspect --json` tells. */
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
  used: { weights: number; kv_cache: number; activations: number; slots: number; staging: number };
  n_units: number;
  n_executed: number;
  ring: { n_slots: number; slot_bytes: number; lookahead: number; upload: string } | null;
  streamed_bytes: number;
}

export interface UnitPlan {
  name: string;
  home: DeviceName;
  execute_on: DeviceName;
  size_bytes: number;
  pieces: { start: number; end: number };
}

/** Where every weight lives, who computes with it, and what memory that takes. */
export interface Plan {
  devices: DevicePlan[];
  units: UnitPlan[];
  pieces: { unit: number; home: DeviceName; size_bytes: number }[];
  ctx_size: number;
  ctx_size_model: number;
  n_seqs: number;
  kv_dtype: 'f16' | 'f32';
}

/** How long a forward should take, and what takes it. */
export interface Prediction {
  load: { n_tokens: number };
  secs: number;
  stall_secs: number;
  streamed_bytes: number;
  devices: { device: DeviceName; compute_secs: number; upload_secs: number; streamed_bytes: number }[];
  fetch_secs: number;
  fetched_bytes: number;
  rates: string;
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
  /** `download`: into the browser's storage. `load`: onto the devices. */
  stage: 'download' | 'load';
  done: number;
  /** Bytes; `null` where a server does not tell. */
  total: number | null;
}

export interface LoadOptions extends PlanOptions {
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

export interface Loaded {
  name: string;
  plan: Plan;
}

export interface Trace {
  spans: {
    lane: 'fetch' | 'upload' | 'compute' | 'stall' | 'hop' | 'readback';
    device?: DeviceName;
    piece: number | null;
    forward: number;
    start_secs: number;
    end_secs: number;
    size_bytes: number;
  }[];
  [key: string]: unknown;
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

export interface ChatMessage {
  role: 'system' | 'user' | 'assistant';
  content: string;
}

export interface ChatRequest {
  messages: ChatMessage[];
  model?: string;
  stream?: boolean;
  stream_options?: { include_usage?: boolean };
  max_tokens?: number;
  max_completion_tokens?: number;
  /** 0 takes the most likely token each time. */
  temperature?: number;
  top_k?: number;
  top_p?: number;
  seed?: number;
  stop?: string | string[];
  n?: 1;
  signal?: AbortSignal;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  /** Tokens of the prompt that an earlier answer left in the KV cache. */
  prompt_tokens_details: { cached_tokens: number };
  extra: { prompt_secs: number; decode_secs: number; ttft_secs: number; tokens: number[] };
}

export interface ChatCompletion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  choices: { index: 0; message: { role: 'assistant'; content: string }; finish_reason: 'stop' | 'length'; logprobs: null }[];
  usage: Usage;
}

export interface ChatCompletionChunk {
  id: string;
  object: 'chat.completion.chunk';
  created: number;
  model: string;
  choices: { index: 0; delta: { role?: 'assistant'; content?: string }; finish_reason: 'stop' | 'length' | null; logprobs: null }[];
  usage?: Usage;
}

export interface Completions {
  create(body: ChatRequest & { stream: true }, options?: { signal?: AbortSignal }): Promise<AsyncGenerator<ChatCompletionChunk, void, void>>;
  create(body: ChatRequest & { stream?: false }, options?: { signal?: AbortSignal }): Promise<ChatCompletion>;
}

/** Fetches and compiles the engine, once for all engines of the page; an engine does so by itself where it was not done. */
export function init(overrides?: { wasm?: string | URL; worker?: string | URL }): Promise<void>;

/** Plans and runs one model at a time, in a worker of its own. */
export class Engine {
  readonly loaded: Loaded | null;
  readonly chat: { readonly completions: Completions };
  readonly storage: { list(): Promise<Stored>; remove(key: string): Promise<void> };
  devices(): Promise<DeviceSpec[]>;
  inspect(source: ModelSource): Promise<Inspection>;
  /** `devices` is the text of a devices file; the plan is then for that machine. */
  plan(source: ModelSource, options?: PlanOptions, devices?: string): Promise<Planned>;
  load(source: ModelSource, options?: LoadOptions): Promise<Loaded>;
  trace(nForwards?: number): Promise<Trace>;
  /** The text of a file for ui.perfetto.dev. */
  perfetto(): Promise<string>;
  memory(): Promise<Memory>;
  /** Gives up the model and the GPU. The engine can be used again. */
  close(): void;
}

export type WebGpuCheck =
  | { ok: true; name: string; limits: Record<string, number>; features: string[] }
  | { ok: false; step: string; fault: string; advice: string };

/** Whether this browser can compute on a GPU; where it cannot, which step failed and what to do. */
export function checkWebGpu(): Promise<WebGpuCheck>;

/** What all errors of the package are; `name` tells them apart. */
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
/** An option is out of its domain. */
export class InvalidArgumentError extends TierflowError {}
/** The engine was told to stop. */
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
