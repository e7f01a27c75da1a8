// The errors of the package, and their plain form, in which they cross from the worker to the page.
// Each text names what is wrong and says what to change; programs distinguish errors by `name`.

/** What all errors of the package are. */
export class TierflowError extends Error {
  name = 'TierflowError';

  /** @param {string} message @param {object} [details] figures and names that belong to the error */
  constructor(message, details = {}) {
    super(message);
    Object.assign(this, details);
  }
}

/** There is no WebGPU here, or no adapter. `step` is the one that failed: `navigator.gpu`, `adapter` or `device`. */
export class NoWebGpuError extends TierflowError {
  name = 'NoWebGpuError';
}

/** A limit of the adapter is in the way. */
export class LimitError extends TierflowError {
  name = 'LimitError';
}

/** A budget is too small: `device` needs at least `needed` bytes and has `available`. */
export class DoesNotFitError extends TierflowError {
  name = 'DoesNotFitError';
}

/** The GPU was taken away: its driver restarted, or memory ran out. The model must be loaded again. */
export class DeviceLostError extends TierflowError {
  name = 'DeviceLostError';
}

/** A file is no model, is damaged, or is of a kind that is not supported. */
export class InvalidFileError extends TierflowError {
  name = 'InvalidFileError';
}

/** An option is out of its domain, or not known; `option` is its name where there is one. */
export class InvalidArgumentError extends TierflowError {
  name = 'InvalidArgumentError';
}

/** A conversation needs `needed` positions, and the context has `available`. */
export class ContextFullError extends InvalidArgumentError {
  name = 'ContextFullError';
}

/** The engine was asked to stop. */
export class InterruptedError extends TierflowError {
  name = 'InterruptedError';
}

/** A server did not give what was asked for; `url` says which. */
export class ServerError extends TierflowError {
  name = 'ServerError';
}

/** The browser's storage is full: `needed` bytes were wanted and `available` are left. */
export class StorageFullError extends TierflowError {
  name = 'StorageFullError';
}

/** A stored model is in use by another tab. */
export class FileBusyError extends TierflowError {
  name = 'FileBusyError';
}

/** The tab whose shared engine answered was closed, or its engine ended. What was asked can be asked again. */
export class HostLostError extends TierflowError {
  name = 'HostLostError';
}

const CLASSES = {
  TierflowError,
  NoWebGpuError,
  LimitError,
  DoesNotFitError,
  DeviceLostError,
  InvalidFileError,
  InvalidArgumentError,
  ContextFullError,
  InterruptedError,
  ServerError,
  StorageFullError,
  FileBusyError,
  HostLostError,
};

/** A `signal` was raised, or the engine was closed. Of an answer that had begun, `usage` says how far it came. */
export class AbortError extends DOMException {
  constructor(message) {
    super(message, 'AbortError');
  }
}

/** What an `AbortSignal` that was raised throws. */
export function abortError(message = 'The operation was cancelled') {
  return new AbortError(message);
}

/**
 * The plain form of anything thrown: `{name, message, …details}`, which `postMessage` can carry. After an error of the engine's
 * own (`isFatal`) nothing that it holds can be trusted.
 */
export function toPlain(thrown) {
  if (thrown instanceof WebAssembly.RuntimeError) {
    const advice = 'what it was about to do is in the console; load the model again';
    return { name: 'TierflowError', message: `the engine failed: ${thrown.message} (${advice})`, isFatal: true };
  }
  if (!(thrown instanceof Error || thrown instanceof DOMException)) {
    return { name: 'TierflowError', message: String(thrown) };
  }
  return { ...thrown, name: thrown.name, message: thrown.message };
}

/** The error that a plain form stands for. */
export function fromPlain({ name, message, ...details }) {
  if (name === 'AbortError') return Object.assign(abortError(message), details);
  return new (CLASSES[name] ?? TierflowError)(message, details);
}
