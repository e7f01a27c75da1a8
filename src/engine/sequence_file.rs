//! Files of one sequence: its tokens, and what the devices keep of them, so that a later engine of the same model goes on where this one was.
//!
//! A file has [`MAGIC`], the bytes of the header (u64), the header (JSON), the tokens (u32 each), what is kept of each layer in order, as its
//! device stores it, and a checksum of all that. Numbers are little-endian. Nothing of a file is used before the header was found to be that
//! of this engine, and a sequence counts as cached once the checksum was right.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Engine, Prepared};
use crate::error::{Error, Result};
use crate::model::RopeTable;
use crate::platform::{self, ByteSource, IoMode, open_source};
use crate::weights::TensorId;

const MAGIC: [u8; 8] = *b"tfcache1";
/// A header is as long as its layers are many.
const HEADER_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the checksum.
const CHECKSUM_BYTES: u64 = 8;
/// Bytes of each tensor by which a model is known.
const SAMPLE_BYTES: u64 = 64;

/// What identifies the engine that a file is for, and what follows.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    /// For messages.
    model: String,
    /// Of the tensors' names, dtypes and shapes, and samples of their bytes.
    weights: String,
    /// Positions of the context, which some models turn their keys by.
    ctx_size: usize,
    n_tokens: usize,
    layers: Vec<LayerMark>,
}

/// What is kept of one layer.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct LayerMark {
    layer: usize,
    /// How its device stores it.
    stored: String,
    n_bytes: u64,
}

impl Engine {
    /// Writes what is kept of `tokens`, which are cached as `sequence`, to a file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; those of the devices; [`Error::Internal`] where the tokens are not cached.
    pub(crate) async fn save_sequence(&mut self, sequence: u32, tokens: &[u32], path: &Path) -> Result<()> {
        self.check_whole()?;
        if self.n_reusable(sequence, tokens.len()) < tokens.len() {
            return Err(Error::internal("a sequence was to be saved that is not cached"));
        }
        let header = self.header(sequence, tokens.len())?;
        let mut writer = Writer::default();
        writer.put(&MAGIC);
        let as_json = serde_json::to_vec(&header).map_err(|error| Error::internal(format!("the header of a cache's file: {error}")))?;
        writer.put(&(as_json.len() as u64).to_le_bytes());
        writer.put(&as_json);
        writer.put(&tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
        for mark in &header.layers {
            writer.put(&self.read_layer(mark.layer, sequence, tokens.len()).await?);
        }
        let checksum = writer.checksum.0.to_le_bytes();
        writer.put(&checksum);
        platform::write_atomically(path, &writer.bytes)
    }

    /// Reads such a file into `sequence`, and returns its tokens. Where it cannot be used, nothing of the sequence is cached.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where the file is broken, or of another model, dtype or context; [`Error::Io`]; those of the devices.
    pub(crate) async fn load_sequence(&mut self, sequence: u32, path: &Path) -> Result<Vec<u32>> {
        self.check_whole()?;
        let source = open_source(path, IoMode::Pread)?;
        let mut reader = Reader { source: &*source, at: 0, checksum: Checksum::default() };
        if reader.take(MAGIC.len() as u64)? != MAGIC {
            return Err(reader.invalid("is no cache that tierflow wrote"));
        }
        let len = reader.number()?;
        if len > HEADER_BYTES_MAX {
            return Err(reader.invalid(format!("has a header of {len} bytes, of which {HEADER_BYTES_MAX} are allowed")));
        }
        let header: Header = serde_json::from_slice(&reader.take(len)?)
            .map_err(|error| reader.invalid(format!("has a header that cannot be read: {error}")))?;
        self.check_header(sequence, &header, &reader)?;
        let n_bytes: u64 = header.layers.iter().map(|mark| mark.n_bytes).sum();
        let end = reader.at + 4 * header.n_tokens as u64 + n_bytes + CHECKSUM_BYTES;
        if source.len() != end {
            return Err(reader.invalid(format!("has {} bytes, where its header says {end}", source.len())));
        }
        let tokens: Vec<u32> = bytemuck::pod_collect_to_vec(&reader.take(4 * header.n_tokens as u64)?);
        let vocab_size = self.config().vocab_size;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(reader.invalid(format!("has token {token}, and the model knows {vocab_size}")));
        }
        let layers = header.layers.iter().map(|mark| Ok((mark.layer, reader.take(mark.n_bytes)?)));
        self.write_layers(sequence, header.n_tokens, layers)?;
        let checksum = reader.checksum;
        if reader.number()? != checksum.0 {
            return Err(reader.invalid("is damaged: its checksum is another one"));
        }
        self.note_cached(sequence, tokens.len());
        Ok(tokens)
    }

    /// By layer, of which something is kept: how its device stores it, and bytes of the first `n_tokens` of a sequence.
    pub(crate) fn kept_of_layers(&self, n_tokens: usize) -> Vec<(usize, String, u64)> {
        self.executors.kept_of_layers(self.config().n_layers, n_tokens)
    }

    /// What is kept of the first `n_tokens` of a sequence in one layer.
    ///
    /// # Errors
    /// Those of the devices.
    pub(crate) async fn read_layer(&mut self, layer: usize, sequence: u32, n_tokens: usize) -> Result<Vec<u8>> {
        let kept = self.executors.read_layer(layer, sequence, n_tokens).await;
        kept.map_err(|error| self.executors.cause_of(error))
    }

    /// Puts back what [`Engine::read_layer`] gave of layers. Nothing of the sequence counts as cached until that is [noted](Engine::note_cached).
    ///
    /// # Errors
    /// Those of the devices, and of `layers`.
    pub(crate) fn write_layers(
        &mut self,
        sequence: u32,
        n_tokens: usize,
        layers: impl Iterator<Item = Result<(usize, Vec<u8>)>>,
    ) -> Result<()> {
        self.note_cached(sequence, 0);
        self.executors.make_room(sequence, 0..n_tokens).map_err(|error| self.executors.cause_of(error))?;
        for layer in layers {
            let (layer, kept) = layer?;
            let written = self.executors.write_layer(layer, sequence, n_tokens, &kept);
            written.map_err(|error| self.executors.cause_of(error))?;
        }
        Ok(())
    }

    /// From now on the first `n_tokens` positions of a sequence count as cached.
    pub(crate) fn note_cached(&mut self, sequence: u32, n_tokens: usize) {
        self.cached.set(sequence, n_tokens);
    }

    /// That of a file with so many tokens of a sequence.
    fn header(&self, sequence: u32, n_tokens: usize) -> Result<Header> {
        let layers = self.kept_of_layers(n_tokens);
        Ok(Header {
            model: self.config().name.clone(),
            weights: weights_mark(&self.model.prepared, self.lora_scales(sequence))?,
            ctx_size: self.plan().ctx_size,
            n_tokens,
            layers: layers.into_iter().map(|(layer, stored, n_bytes)| LayerMark { layer, stored, n_bytes }).collect(),
        })
    }

    fn check_header(&self, sequence: u32, found: &Header, reader: &Reader<'_>) -> Result<()> {
        let ctx_size = self.plan().ctx_size;
        if found.n_tokens > ctx_size {
            return Err(reader.invalid(format!("holds {} tokens, and the context has {ctx_size} positions", found.n_tokens)));
        }
        let own = self.header(sequence, found.n_tokens)?;
        if found.weights != own.weights {
            return Err(reader.invalid(format!("was saved with other weights: those of `{}`", found.model)));
        }
        let turned_alike = |table: &RopeTable| table.of_context(found.ctx_size) == table.of_context(ctx_size);
        if !self.model.prepared.model.rope_tables.iter().all(turned_alike) {
            let contexts = format!("a context of {} positions, and this one has {ctx_size}", found.ctx_size);
            return Err(reader.invalid(format!("was saved in {contexts}: the model turns keys by that")));
        }
        if found.layers.len() != own.layers.len() {
            return Err(reader.invalid(format!("has {} layers, and the model keeps {}", found.layers.len(), own.layers.len())));
        }
        match found.layers.iter().zip(&own.layers).find(|(found, own)| found != own) {
            None => Ok(()),
            Some((found, own)) => {
                let (saved, stored) = (&found.stored, &own.stored);
                Err(reader.invalid(format!("has {saved} of layer {}, and here are stored {stored} of layer {}", found.layer, own.layer)))
            }
        }
    }
}

/// A file on its way, part by part as [`Reader`] takes them.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    checksum: Checksum,
}

impl Writer {
    fn put(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
        self.checksum.add(part);
    }
}

/// Reads a file from its first byte to its last.
struct Reader<'s> {
    source: &'s dyn ByteSource,
    at: u64,
    checksum: Checksum,
}

impl Reader<'_> {
    /// The next `len` bytes.
    fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        if self.source.len().saturating_sub(self.at) < len {
            return Err(self.invalid(format!("ends at byte {}, where {len} more are expected behind byte {}", self.source.len(), self.at)));
        }
        let n_bytes = usize::try_from(len).map_err(|_| self.invalid("is too large for this machine"))?;
        let mut bytes = platform::zeroed(n_bytes, "a part of a cache's file")?;
        self.source.read_at(self.at, &mut bytes)?;
        self.at += len;
        self.checksum.add(&bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64> {
        let bytes = self.take(8)?;
        Ok(bytes.as_chunks::<8>().0.first().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::invalid_file(self.source.path(), reason)
    }
}

/// Of a file's parts, as FNV-1a makes one of bytes: against damage, not against malice, which could as well write other keys.
#[derive(Debug, Clone, Copy)]
struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Checksum {
        Checksum(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    /// Adds a part, eight bytes at a time.
    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let rest = rest.iter().map(|byte| u64::from(*byte));
        for word in words.iter().map(|word| u64::from_le_bytes(*word)).chain(rest) {
            self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.0 ^= self.0 >> 29;
        }
    }
}

/// What is the same of two models with the same weights, and the same adapters in the same strength, only. Sequences that choose have
/// `chosen`.
fn weights_mark(prepared: &Prepared, chosen: &[f32]) -> Result<String> {
    let checkpoint = &prepared.checkpoint;
    let catalog = &checkpoint.catalog;
    let mut checksum = Checksum::default();
    let scales: Vec<f32> = prepared.loras.iter().map(|adapter| adapter.scale).collect();
    checksum.add(bytemuck::cast_slice(if chosen.is_empty() { &scales } else { chosen }));
    for tensor in &catalog.tensors {
        checksum.add(format!("{} {} {:?};", tensor.name, tensor.dtype, tensor.shape).as_bytes());
    }
    for id in (0..catalog.tensors.len() as u32).map(TensorId) {
        let size = catalog[id].size_bytes.0;
        let mut sample = vec![0; SAMPLE_BYTES.min(size) as usize];
        checkpoint.read(id, (size - sample.len() as u64) / 2 / 64 * 64, &mut sample)?;
        checksum.add(&sample);
    }
    Ok(format!("{:016x}", checksum.0))
}
