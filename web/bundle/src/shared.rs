//! A second wasm of the same code, whose memory several workers share. Its memory is imported, and what fills it at first is only
//! copied by the worker that starts the engine: others come to a memory that is in use.

use walrus::ir::{DataDrop, MemoryInit, Value};
use walrus::{ConstExpr, DataKind, FunctionBuilder, GlobalId, GlobalKind, Module, ValType};

/// What the bindings call once the wasm is there.
const START: &str = "__wbindgen_start";
/// The import that is the memory.
pub const MEMORY: [&str; 2] = ["tierflow", "memory"];
/// Exported: where the stack of the worker ends. Each worker has its own stack, and its own value.
const STACK_POINTER: &str = "__stack_pointer";
/// The most that can be addressed. A browser may give less.
const MOST_PAGES: u64 = 1 << 16;

/// What in the bindings does not fit a memory that is shared, or that grows while views of it stay valid, and what does. Both kinds
/// of wasm are then served by the same bindings.
const OF_BINDINGS: [(&str, &str); 6] = [
    ("cachedUint8ArrayMemory0.byteLength === 0", "cachedUint8ArrayMemory0.buffer !== wasm.memory.buffer"),
    ("cachedUint32ArrayMemory0.byteLength === 0", "cachedUint32ArrayMemory0.buffer !== wasm.memory.buffer"),
    ("decodeText(getUint8ArrayMemory0().subarray(ptr, ptr + len))", "decodeText(getUint8ArrayMemory0().slice(ptr, ptr + len))"),
    ("if (!('encodeInto' in cachedTextEncoder)) {", "{"),
    (
        "globalThis.crypto.getRandomValues(getArrayU8FromWasm0(arg0, arg1));",
        "getArrayU8FromWasm0(arg0, arg1).set(globalThis.crypto.getRandomValues(new Uint8Array(arg1)));",
    ),
    (
        "        \"./tierflow_bg.js\": import0,\n",
        "        \"./tierflow_bg.js\": import0,\n        \"tierflow\": { memory: sharedMemory },\n",
    ),
];
/// Stands at the end of the bindings.
const SHARING: &str = "
let sharedMemory;

/** Pages that such a memory has at least. */
export const sharedPages = PAGES;

/** The memory of a wasm that shares it with other workers; to be called before that is loaded. */
export function shareMemory(memory) {
    sharedMemory = memory;
}
";

/// The bindings for both kinds of wasm. A shared memory has so many pages at first.
///
/// # Errors
/// In words, where they are not those that are known here.
pub fn bindings_for_both(bindings: &str, n_pages: u64) -> Result<String, String> {
    let mut changed = bindings.to_owned();
    for (from, to) in OF_BINDINGS {
        if changed.matches(from).count() != 1 {
            return Err(format!("the bindings do not have exactly one `{}`", from.trim()));
        }
        changed = changed.replace(from, to);
    }
    Ok(changed + &SHARING.replace("PAGES", &n_pages.to_string()))
}

/// Turns `module`, as its bindings have it, into the kind that shares its memory; yields the pages that this has at first.
///
/// # Errors
/// In words, where a part is not there.
pub fn share_memory(module: &mut Module) -> Result<u64, String> {
    let stack_pointer = stack_pointer(module).ok_or("the wasm has no stack pointer")?;
    let memory = module.memories.iter().next().ok_or("the wasm has no memory")?.id();
    let start = module.exports.get_func(START).map_err(|error| error.to_string())?;
    let mut fill = FunctionBuilder::new(&mut module.types, &[], &[]);
    let segments: Vec<_> = module.data.iter().map(walrus::Data::id).collect();
    for data in segments {
        let segment = module.data.get_mut(data);
        let DataKind::Active { offset, .. } = &segment.kind else { continue };
        let ConstExpr::Value(Value::I32(offset)) = *offset else { return Err("the wasm's data has no fixed place".into()) };
        let len = i32::try_from(segment.value.len()).map_err(|error| error.to_string())?;
        segment.kind = DataKind::Passive;
        let mut body = fill.func_body();
        body.i32_const(offset).i32_const(0).i32_const(len);
        body.instr(MemoryInit { memory, data }).instr(DataDrop { data });
    }
    fill.func_body().call(start);
    let fill = fill.finish(Vec::new(), &mut module.funcs);
    let import = module.imports.add(MEMORY[0], MEMORY[1], memory);
    let shared = module.memories.get_mut(memory);
    shared.data_segments.clear();
    (shared.shared, shared.maximum, shared.import) = (true, Some(MOST_PAGES), Some(import));
    module.exports.remove(START).map_err(|error| error.to_string())?;
    module.exports.add(START, fill);
    module.exports.add(STACK_POINTER, stack_pointer);
    Ok(module.memories.get(memory).initial)
}

/// The linker's name for it is there until the wasm is written.
fn stack_pointer(module: &Module) -> Option<GlobalId> {
    let is_own = |global: &&walrus::Global| global.mutable && global.ty == ValType::I32 && matches!(global.kind, GlobalKind::Local(_));
    module.globals.iter().filter(is_own).find(|global| global.name.as_deref() == Some(STACK_POINTER)).map(walrus::Global::id)
}
