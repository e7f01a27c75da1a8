//! Every shader without a GPU: it parses and validates, has the bindings of the kernel table, and its `Params` lies in memory as Rust's does.

use std::collections::BTreeSet;
use std::mem::offset_of;

use tierflow::DType;
use tierflow::gpu::{Access, KernelSource};
use tierflow::kernels::back::loss;
use tierflow::kernels::back::products::OuterParams;
use tierflow::kernels::back::values::ScatterParams;
use tierflow::kernels::{
    KERNELS, add, add_bias, add_expert_bias, attention, conv, copy_part, delta_rule, expert_matmul, gate_rows, gather_rows, glu,
    layer_norm, map, matmul, rms_norm, rope, rope_kv, route, sum_experts, top_k, weigh_inputs,
};
use wgpu::naga;

/// WebGPU's guarantee per stage.
const MAX_STORAGE_BUFFERS: usize = 8;
/// WebGPU's guarantee per workgroup, in bytes.
const MAX_WORKGROUP_BYTES: u32 = 16 << 10;

/// Kernels for adapters that have more than WebGPU's base: each has a twin without, which the others take.
const BEYOND_BASE: [&str; 4] = ["matmul_subgroup", "expert_matmul_subgroup", "attention_subgroup", "attention_subgroup_tile"];

type Members = Vec<(&'static str, usize)>;

macro_rules! members {
    ($params:ty: $($field:ident),+) => {
        (size_of::<$params>(), vec![$((stringify!($field), offset_of!($params, $field))),+])
    };
}

/// Size, and name and offset of each member, of the Rust side of `stem`.
fn rust_params(stem: &str) -> (usize, Members) {
    match stem {
        "matmul_vec" | "matmul_tile" | "matmul_subgroup" | "matmul_unaligned" | "matmul_back" => {
            members!(matmul::Params: n_rows, n_columns, n_tokens, output_stride, output_row_begin, dtype, weight_begin, accumulates)
        }
        "rms_norm" | "rms_norm_back" => members!(rms_norm::Params: n_rows, hidden_size, epsilon, weight_offset),
        "layer_norm" | "layer_norm_back" => members!(layer_norm::Params: n_rows, hidden_size, epsilon, weight_offset),
        "rope" => members!(rope::Params: n_tokens, n_heads, head_size, rotary_size, pairing),
        "rope_kv" | "rope_kv_padded" | "rope_kv_blocks" => {
            members!(rope_kv::Params: n_tokens, n_heads, n_kv_heads, head_size, n_blocks, kv_capacity, key_dtype, value_dtype, pairing, rotary_size)
        }
        "attention_token"
        | "attention_tile"
        | "attention_subgroup"
        | "attention_subgroup_tile"
        | "attention_combine"
        | "attention_compact"
        | "attention_dense"
        | "attention_back_query"
        | "attention_back_keys" => {
            members!(attention::Params: n_tokens, n_heads, n_kv_heads, head_size, n_blocks, kv_capacity, window, scale, key_dtype, value_dtype, softcap, is_causal, in_chunks)
        }
        "conv" => members!(conv::Params: n_tokens, width, n_taps, n_seqs),
        "copy_part" => members!(copy_part::Params: n_heads, len, input_size, input_begin, output_size, output_begin),
        "delta_rule" => members!(delta_rule::Params: n_tokens, n_seqs, n_key_heads, n_value_heads, key_size, value_size, is_tiled),
        "glu" | "glu_back" => members!(glu::Params: n_values),
        "map" | "map_back" => members!(map::Params: n_values, number),
        "add" => members!(add::Params: n_values),
        "add_bias" => members!(add_bias::Params: n_tokens, width),
        "gather_rows" => members!(gather_rows::Params: n_rows, n_input_rows, width),
        "top_k" => members!(top_k::Params: n_rows, vocab_size, k, n_segments),
        "route" => members!(route::Params: n_tokens, n_experts, n_used, scores, n_groups, n_groups_used, n_best, normalises, scale),
        "expert_matmul" | "expert_matmul_tile" | "expert_matmul_subgroup" => {
            members!(expert_matmul::Params: n_rows, n_columns, n_tokens, n_used, expert_rows, first_row, shares_input, slot_bytes, matrix_begin, n_experts)
        }
        "weigh_inputs" => members!(weigh_inputs::Params: n_tokens, n_used, width),
        "sum_experts" => members!(sum_experts::Params: n_tokens, n_used, width),
        "add_expert_bias" => members!(add_expert_bias::Params: n_tokens, n_used, width),
        "gate_rows" => members!(gate_rows::Params: n_tokens, width),
        "add_outer" => members!(OuterParams: n_tokens, n_rows, n_columns),
        "scatter_rows" => members!(ScatterParams: n_rows, n_output_rows, width),
        "softmax_totals" | "softmax_back" => members!(loss::Params: n_rows, width, first, factor, slope, cap),
        _ => panic!("{stem}: a new kernel needs a row here"),
    }
}

fn parse(kernel: &KernelSource) -> naga::Module {
    let module = naga::front::wgsl::parse_str(kernel.wgsl)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string_with_path(kernel.wgsl, kernel.stem)));
    // WebGPU's base and nothing beyond: `unpack2x16float` belongs to it; f16, subgroups and immediates do not. A few kernels are
    // for adapters that have more.
    let base = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let more = if BEYOND_BASE.contains(&kernel.stem) {
        naga::valid::Capabilities::SUBGROUP | naga::valid::Capabilities::SHADER_INT64
    } else {
        naga::valid::Capabilities::empty()
    };
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), base | more);
    validator.subgroup_operations(naga::valid::SubgroupOperationSet::all()).subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    if let Err(error) = validator.validate(&module) {
        panic!("{}", error.emit_to_string_with_path(kernel.wgsl, kernel.stem));
    }
    module
}

#[test]
fn every_shader_is_valid_and_has_one_entry_point_named_main() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let names: Vec<&str> = module.entry_points.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["main"], "{}", kernel.stem);
    }
}

#[test]
fn params_lie_in_memory_as_rust_has_them() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let (_, ty) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params")).expect("a struct Params");
        let naga::TypeInner::Struct { members, span } = &ty.inner else { panic!("{}: Params is no struct", kernel.stem) };
        let found: Vec<(&str, usize)> =
            members.iter().map(|member| (member.name.as_deref().unwrap_or_default(), member.offset as usize)).collect();
        let (size, expected) = rust_params(kernel.stem);
        assert_eq!(found, expected, "{}", kernel.stem);
        assert_eq!(*span as usize, size, "{}", kernel.stem);
        // The matrix products bind an array of them, one for each output.
        let n_outputs = kernel.bindings.iter().filter(|(name, _)| name.starts_with("output")).count();
        let n_params = if kernel.stem.starts_with("matmul") && n_outputs > 0 { n_outputs } else { 1 };
        assert_eq!(kernel.params_bytes, (size * n_params) as u64, "{}", kernel.stem);
        assert!(n_params == 1 || size.is_multiple_of(16), "{}: the stride of an array of uniforms", kernel.stem);
    }
}

#[test]
fn bindings_are_those_of_the_table_in_their_order() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let mut found = Vec::new();
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            assert_eq!(binding.group, 0, "{}", kernel.stem);
            let access = match variable.space {
                naga::AddressSpace::Uniform => None,
                naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => Some(Access::Write),
                naga::AddressSpace::Storage { .. } => Some(Access::Read),
                _ => panic!("{}: a binding that is no buffer", kernel.stem),
            };
            found.push((binding.binding as usize, variable.name.clone().unwrap_or_default(), access));
        }
        found.sort_by_key(|&(index, ..)| index);
        let mut expected = vec![(0, "params".to_owned(), None)];
        expected.extend(kernel.bindings.iter().enumerate().map(|(index, &(name, access))| (index + 1, name.to_owned(), Some(access))));
        assert_eq!(found, expected, "{}", kernel.stem);
        assert!(kernel.bindings.len() <= MAX_STORAGE_BUFFERS, "{}", kernel.stem);
    }
}

#[test]
fn workgroup_memory_stays_within_what_every_adapter_has() {
    for kernel in KERNELS {
        let module = parse(kernel);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).expect("types have sizes");
        let bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
            .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
            .sum();
        assert!(bytes <= MAX_WORKGROUP_BYTES, "{}: {bytes} bytes", kernel.stem);
    }
}

#[test]
fn every_shader_file_is_in_the_table_and_the_table_has_no_twins() {
    let stems: BTreeSet<String> = KERNELS.iter().map(|kernel| kernel.stem.to_owned()).collect();
    let rows: BTreeSet<(&str, usize)> = KERNELS.iter().map(|kernel| (kernel.stem, kernel.bindings.len())).collect();
    assert_eq!(rows.len(), KERNELS.len());
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .expect("the folder of shaders")
        .filter_map(|entry| entry.expect("an entry").file_name().to_str()?.strip_suffix(".wgsl").map(str::to_owned))
        .collect();
    assert_eq!(files, stems);
}

#[test]
fn no_shader_uses_what_is_known_to_fail() {
    for kernel in KERNELS {
        let uses_subgroups = kernel.wgsl.lines().any(|line| line.split("//").next().is_some_and(|code| code.contains("subgroup")));
        assert!(!uses_subgroups || BEYOND_BASE.contains(&kernel.stem), "{}: not every adapter has subgroups", kernel.stem);
        for (banned, why) in [
            ("subgroupBroadcastFirst", "a software adapter ends the process where it compiles it"),
            ("bitcast<vec2<f16>>", "naga compiles it wrongly; unpack2x16float is right"),
            ("enable f16", "not every adapter has it"),
            ("var<immediate>", "no browser has it"),
        ] {
            assert!(!kernel.wgsl.contains(banned), "{} uses `{banned}`: {why}", kernel.stem);
        }
    }
}

#[test]
fn shaders_know_dtypes_by_their_codes() {
    for kernel in KERNELS.iter().filter(|kernel| {
        ["matmul_vec", "matmul_tile", "matmul_subgroup", "expert_matmul", "expert_matmul_tile", "expert_matmul_subgroup"]
            .contains(&kernel.stem)
    }) {
        for dtype in DType::ALL {
            let code = format!("const {dtype}: u32 = {}u;", matmul::dtype_code(dtype));
            assert!(kernel.wgsl.contains(&code), "{} lacks `{code}`", kernel.stem);
        }
    }
}
