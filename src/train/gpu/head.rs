//! The loss: cross-entropy fused with the product of the head. Logits are computed for some of the vocabulary at a time, once for their totals and once
//! more for their gradient.

use super::GpuPasses;
use super::memory::{Holds, head_ops};
use crate::error::{Error, Result};
use crate::gpu;
use crate::kernels::back::{loss, products};
use crate::kernels::{Binding, add_bias, map, matmul};
use crate::model::{Function, Model, Op, ValueId};
use crate::train::weights::Weights;
use crate::weights::TensorId;

/// The product of a head and what is behind it.
struct Product {
    input: ValueId,
    weight: TensorId,
    behind: Vec<Op>,
}

/// Some rows of a part of the head's matrix, and the params of their loss.
struct Slice {
    part: usize,
    /// In the part.
    first_row: u32,
    params: loss::Params,
}

fn product_of(model: &Model) -> Result<Product> {
    let ops = model.units.last().map(|unit| &unit.ops[..]).unwrap_or_default();
    match &ops[head_ops(model).len()..] {
        [Op::MatMul { input, weight, .. }, behind @ ..] => Ok(Product { input: *input, weight: *weight, behind: behind.to_vec() }),
        _ => Err(Error::internal("a head without a product")),
    }
}

/// By how much logits change with their products, and the cap that they end at.
fn slope_and_cap(behind: &[Op]) -> Result<(f32, f32)> {
    let (mut slope, mut cap) = (1.0, 0.0);
    for op in behind {
        match op {
            Op::AddBias { .. } => {}
            Op::Map { function: Function::Scale(factor), .. } => (slope, cap) = (slope * factor, cap * factor),
            Op::Map { function: Function::Softcap(own), .. } if cap == 0.0 => cap = *own,
            op => return Err(Error::internal(format!("no gradient of {op:?} of a head"))),
        }
    }
    Ok((slope, cap))
}

impl GpuPasses {
    /// The loss of the batch: the sum over its rows of minus the logarithm of `targets`' probabilities. With a factor, the gradient of the loss times it
    /// becomes that of the residual stream.
    pub(in crate::train) async fn loss(&mut self, host: &Weights, targets: &[u32], gradient_of: Option<f32>) -> Result<f64> {
        let model = std::sync::Arc::clone(&self.model);
        let (before, product) = (head_ops(&model), product_of(&model)?);
        let kept = self.memory.kept_in(model.units.len());
        self.run(host, before, gradient_of.is_some().then_some(&kept))?;
        self.recorder.submit(&self.gpu);
        self.gpu.queue.write_buffer(self.memory.buffer(&self.gpu, Holds::Targets)?, 0, bytemuck::cast_slice(targets));
        let slices = self.slices(&product, gradient_of.unwrap_or(1.0))?;
        for slice in &slices {
            self.logits(host, &product, slice)?;
            let (gpu, params) = (&self.gpu, &slice.params);
            let bind = |holds| self.memory.bind(gpu, holds);
            let bindings = [bind(Holds::Logits)?, bind(Holds::Targets)?, bind(Holds::LossTotals)?];
            self.recorder.dispatch(gpu, params, |arena| loss::prepare_totals(gpu, arena, params, bindings))?;
        }
        if gradient_of.is_some() {
            let into = self.memory.gradient(&self.gpu, &mut self.recorder, product.input)?;
            for slice in &slices {
                let (rows, block) = self.logits(host, &product, slice)?;
                let (gpu, params) = (&self.gpu, &slice.params);
                let bind = |holds| self.memory.bind(gpu, holds);
                let bindings = [bind(Holds::Targets)?, bind(Holds::LossTotals)?, bind(Holds::Logits)?];
                self.recorder.dispatch(gpu, params, |arena| loss::prepare_back(gpu, arena, params, bindings))?;
                let (weight, upward) = (Binding::whole(&block), bind(Holds::Logits)?);
                let bindings = products::Bindings { weight, upward, into: Binding::whole(&into) };
                self.recorder.dispatch(gpu, &rows, |arena| products::prepare(gpu, arena, &rows, bindings))?;
                self.recorder.count(gpu, &rows);
            }
            for (index, op) in before.iter().enumerate().rev() {
                self.undo(host, index, op, &kept)?;
            }
            self.memory.forget_gradients_but(self.model.hidden);
        }
        self.recorder.submit(&self.gpu);
        let totals = self.memory.buffer(&self.gpu, Holds::LossTotals)?;
        let bytes = gpu::read(&self.gpu, totals, 0, (targets.len() * size_of::<loss::Totals>()) as u64).await?;
        let totals: Vec<loss::Totals> = bytemuck::pod_collect_to_vec(&bytes);
        let of_row = |[most, sum, of_target, _]: &loss::Totals| f64::from(*most) + f64::from(*sum).ln() - f64::from(*of_target);
        Ok(totals.iter().map(of_row).sum())
    }

    fn slices(&self, product: &Product, factor: f32) -> Result<Vec<Slice>> {
        let (slope, cap) = slope_and_cap(&product.behind)?;
        // As many as the buffer has room for, however many rows there are: sums over the vocabulary are always cut the same way.
        let at_once = self.memory.logits_at_once;
        let mut slices = Vec::new();
        let mut first = 0;
        for part in 0..self.weights.n_parts(product.weight) {
            let n_rows = self.weights.n_rows(product.weight, part);
            for first_row in (0..n_rows).step_by(at_once as usize) {
                let width = at_once.min(n_rows - first_row);
                let params = loss::Params { n_rows: self.batch.n_logit_rows, width, first: first + first_row, factor, slope, cap };
                slices.push(Slice { part, first_row, params });
            }
            first += n_rows;
        }
        Ok(slices)
    }

    /// Records the logits of a slice. Gives the params of their product, and the buffer that has its rows.
    fn logits(&mut self, host: &Weights, product: &Product, slice: &Slice) -> Result<(matmul::Params, wgpu::Buffer)> {
        let GpuPasses { gpu, recorder, memory, weights, batch, .. } = self;
        let loss::Params { width, first, .. } = slice.params;
        let (of_part, block) = weights.part(gpu, host, recorder, product.weight, slice.part, batch.n_logit_rows)?;
        let begin = of_part.row_bytes().unwrap_or(0) * u64::from(slice.first_row);
        let params = matmul::Params {
            n_rows: width,
            output_stride: width,
            output_row_begin: 0,
            weight_begin: (begin / matmul::WEIGHT_ALIGNMENT) as u32,
            ..of_part
        };
        let (input, output) = (memory.bind(gpu, Holds::Value(product.input))?, memory.bind(gpu, Holds::Logits)?);
        let bindings = matmul::Bindings { weight: Binding::whole(&block), input, output };
        recorder.dispatch(gpu, &matmul::padded(&[params]), |arena| matmul::prepare(gpu, arena, &params, bindings))?;
        recorder.count(gpu, &params);
        for op in &product.behind {
            match *op {
                Op::AddBias { bias, .. } => {
                    let own = memory.vector(gpu, bias)?;
                    // The bias of all tokens is one buffer, which may be bound from multiples of 256 bytes on.
                    let part = Binding::part(own.buffer, u64::from(first) * 4, own.size - u64::from(first) * 4);
                    let params = add_bias::Params { n_tokens: batch.n_logit_rows, width };
                    let bindings = add_bias::Bindings { bias: part, target_values: output };
                    recorder.dispatch(gpu, &params, |arena| add_bias::prepare(gpu, arena, &params, bindings))?;
                }
                Op::Map { function, .. } => {
                    let number = if let Function::Scale(number) | Function::Softcap(number) = function { number } else { 0.0 };
                    let params = map::Params { n_values: batch.n_logit_rows * width, number };
                    recorder.dispatch(gpu, &params, |arena| map::prepare(gpu, arena, &params, function, output))?;
                }
                ref op => return Err(Error::internal(format!("no gradient of {op:?} of a head"))),
            }
        }
        Ok((params, block))
    }
}
