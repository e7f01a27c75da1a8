// Whether this browser can compute on a GPU; where it cannot, which step failed and what to do about it.

/** Limits that decide how weights are cut. WebGPU's defaults suffice. */
const LIMITS = ['maxBufferSize', 'maxStorageBufferBindingSize', 'maxComputeInvocationsPerWorkgroup'];

const NO_GPU_OBJECT = {
  step: 'navigator.gpu',
  reason: 'This browser has no WebGPU.',
  advice:
    'For a GPU, use a recent Chrome, Edge, Safari or Firefox, and open the page by https:// or from localhost: WebGPU is hidden on plain http://.',
};

const NO_ADAPTER = {
  step: 'requestAdapter',
  reason: 'This browser has WebGPU, but offers no adapter.',
  advice:
    'For a GPU, turn on hardware acceleration in the settings of the browser, update the graphics driver, and look at chrome://gpu. On Linux, Chrome may want “Unsafe WebGPU Support” turned on at chrome://flags.',
};

/**
 * Asks the browser step by step.
 * @returns {Promise<{ok: true, name: string, isSoftware: boolean, limits: Record<string, number>, features: string[]}
 *   | {ok: false, step: string, reason: string, advice: string}>}
 */
export async function checkWebGpu() {
  if (!globalThis.navigator?.gpu) return { ok: false, ...NO_GPU_OBJECT };
  let adapter;
  try {
    adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  } catch (error) {
    return { ok: false, ...NO_ADAPTER, reason: `${NO_ADAPTER.reason} It says: ${error.message}` };
  }
  if (!adapter) return { ok: false, ...NO_ADAPTER };
  const { vendor, architecture, description, isFallbackAdapter } = adapter.info ?? {};
  return {
    ok: true,
    name: description || [vendor, architecture].filter(Boolean).join(' ') || 'WebGPU adapter',
    // Older browsers have it on the adapter, not on its info.
    isSoftware: isFallbackAdapter ?? adapter.isFallbackAdapter ?? false,
    limits: Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]])),
    features: [...adapter.features].sort(),
  };
}
