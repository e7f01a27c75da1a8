//! What units have read in a forward, until their way back needs it: in host memory, or where that has no room in a file.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::platform::ScratchFile;

/// By unit: what it has read.
#[derive(Default)]
pub(super) struct KeptInputs {
    in_memory: HashMap<usize, Vec<f32>>,
    file: Option<ScratchFile>,
    /// Where the file has what it has: the place, and how many values.
    in_file: HashMap<usize, (u64, usize)>,
    /// The end of the file.
    end: u64,
}

impl KeptInputs {
    /// In memory, or in a file of `folder`, which goes with the program.
    pub(super) fn new(folder: Option<&Path>) -> Result<KeptInputs> {
        let file = folder.map(ScratchFile::create).transpose()?;
        Ok(KeptInputs { file, ..KeptInputs::default() })
    }

    /// Forgets a batch.
    pub(super) fn clear(&mut self) {
        self.in_memory.clear();
        self.in_file.clear();
        self.end = 0;
    }

    /// Keeps what `unit` reads.
    pub(super) fn keep(&mut self, unit: usize, input: Vec<f32>) -> Result<()> {
        let Some(file) = &mut self.file else {
            self.in_memory.insert(unit, input);
            return Ok(());
        };
        file.write_at(self.end, bytemuck::cast_slice(&input))?;
        self.in_file.insert(unit, (self.end, input.len()));
        self.end += size_of_val(&input[..]) as u64;
        Ok(())
    }

    /// What it has read, which is forgotten then.
    pub(super) fn take(&mut self, unit: usize) -> Result<Vec<f32>> {
        if let Some((place, len)) = self.in_file.remove(&unit)
            && let Some(file) = &mut self.file
        {
            let mut input = vec![0.0; len];
            file.read_at(place, bytemuck::cast_slice_mut(&mut input))?;
            return Ok(input);
        }
        self.in_memory.remove(&unit).ok_or_else(|| Error::internal("a unit was not kept"))
    }
}
