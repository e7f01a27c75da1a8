//! One file from the hub into the cache: resumed, checked, and visible only when it is whole.

use std::io::Read;

use ureq::Body;
use ureq::http::Response;

use super::cache::{Partial, RepoCache};
use super::client::{ATTEMPTS, Client, Failure, FileInfo, Retry, header, network};
use super::{Progress, Way};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Bytes asked of the connection at once.
const BLOCK_BYTES: usize = 256 << 10;

/// A file under way.
struct Fetch<'a> {
    client: &'a Client,
    url: String,
    file: &'a str,
    info: FileInfo,
}

/// Brings `file` of `commit` into the cache, where it is not there yet or not of the size that the hub names, or in any case with
/// [`Way::Anew`]. Returns the bytes that came over the network.
pub(super) fn fetch_file(
    client: &Client,
    cache: &RepoCache,
    commit: &str,
    file: &str,
    way: Way,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Bytes> {
    let there = cache.snapshot_file_size(commit, file);
    let url = client.file_url(cache.repo(), commit, file);
    let info = match (client.file_info(&url), there) {
        (Ok(info), _) => info,
        (Err(failure), Some(size)) if failure.is_outage && way == Way::Missing => {
            tracing::warn!("{}; {file} is in the cache, which is used", failure.error);
            progress(Progress::of(file, size, size));
            return Ok(Bytes::ZERO);
        }
        (Err(failure), _) => return Err(*failure.error),
    };
    let size = info.size;
    let fetch = Fetch { client, url, file, info };
    let blob = fetch.info.blob.clone();
    let mut fetched = Bytes::ZERO;
    if way == Way::Anew || there != Some(size) {
        if let (Way::Missing, Some(there)) = (way, there) {
            tracing::warn!("{file} has {} bytes in the cache and {} on the hub: it is fetched anew", there.0, size.0);
        }
        let brought = if way == Way::Missing && cache.blob_size(&blob) == Some(size) { None } else { fetch.bring(cache, way, progress)? };
        cache.link(commit, file, &blob, brought.is_some())?;
        fetched = brought.unwrap_or_default();
    }
    cache.remove_orphans(&blob);
    progress(Progress::of(file, size, size));
    Ok(fetched)
}

/// What has arrived of a file.
struct Arrived {
    /// Bytes from its start on that are on disk.
    done: Bytes,
    /// Bytes that this fetch brought.
    fetched: Bytes,
}

impl Fetch<'_> {
    /// Makes the blob; `None` where another process was faster.
    fn bring(&self, cache: &RepoCache, way: Way, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Option<Bytes>> {
        let mut partial = cache.open_partial(&self.info.blob)?;
        if way == Way::Anew {
            partial.discard()?;
        } else if cache.blob_size(&self.info.blob) == Some(self.info.size) {
            return Ok(None);
        }
        let fetched = self.fill_and_check(&mut partial, progress)?;
        cache.keep_partial(partial, &self.info.blob)?;
        Ok(Some(fetched))
    }

    /// Reads until the file is whole, and once more where what an earlier fetch left spoils it.
    fn fill_and_check(&self, partial: &mut Partial, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Bytes> {
        let goes_on = partial.len()? > Bytes::ZERO;
        let fetched = self.fill(partial, progress)?;
        match self.check_digest(partial) {
            Ok(()) => Ok(fetched),
            Err(error) if goes_on => {
                tracing::warn!("{error}; it went on from what an earlier fetch had left, and is fetched from its start now");
                let again = self.fill(partial, progress)?;
                self.check_digest(partial)?;
                Ok(fetched + again)
            }
            Err(error) => Err(error),
        }
    }

    /// Compares what has arrived with the SHA-256 that the hub names, where it names one; what differs is thrown away.
    fn check_digest(&self, partial: &mut Partial) -> Result<()> {
        let Some(expected) = self.info.sha256() else { return Ok(()) };
        let found = partial.sha256()?;
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        partial.discard()?;
        let reason = format!("what arrived has the SHA-256 {found}, where the hub names {expected}; fetch it again, or check the mirror");
        Err(network(&self.url, reason))
    }

    /// Reads until the file is whole. A connection that breaks is taken up where it ended, as long as each brings a block at least.
    fn fill(&self, partial: &mut Partial, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Bytes> {
        let there = partial.len()?;
        let mut arrived = Arrived { done: if there > self.info.size { Bytes::ZERO } else { there }, fetched: Bytes::ZERO };
        let (mut failed, mut n_restarts) = (0, 0);
        while arrived.done < self.info.size {
            let before = arrived.done;
            let Err(failure) = self.read_once(partial, &mut arrived, progress) else { continue };
            // A connection that always breaks at once would otherwise be taken up for ever.
            let brought_something = arrived.done >= before + Bytes(BLOCK_BYTES as u64);
            failed = if brought_something { 1 } else { failed + 1 };
            if failure.retry == Retry::FromStart {
                n_restarts += 1;
                partial.discard()?;
                arrived.done = Bytes::ZERO;
            }
            let wait = self.client.wait_before_next(failure, failed.max(n_restarts), ATTEMPTS).map_err(|failure| *failure.error)?;
            progress(Progress { waiting: Some(wait), ..Progress::of(self.file, arrived.done, self.info.size) });
            std::thread::sleep(wait);
        }
        let finish = partial.file.set_len(self.info.size.0).and_then(|()| partial.file.sync_all());
        finish.map_err(|source| partial.io("finish", source))?;
        Ok(arrived.fetched)
    }

    /// One request for what is missing; `arrived` counts also where the connection breaks.
    fn read_once(&self, partial: &mut Partial, arrived: &mut Arrived, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), Failure> {
        let mut response = self.client.open(&self.url, arrived.done)?;
        arrived.done = self.start_of(&response, arrived.done)?;
        let mut body = response.body_mut().as_reader();
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let read = body.read(&mut block);
            let count =
                read.map_err(|reason| Failure::passing(self.error(format!("the connection broke at {}: {reason}", arrived.done))))?;
            if count == 0 {
                break;
            }
            let after = arrived.done + Bytes(count as u64);
            if after > self.info.size {
                // What is on disk came from a server that does not keep its word.
                partial.discard().map_err(Failure::for_good)?;
                arrived.done = Bytes::ZERO;
                return Err(Failure::for_good(self.error(format!("the server sends more than the {} that it announced", self.info.size))));
            }
            partial.write(arrived.done, &block[..count]).map_err(Failure::for_good)?;
            arrived.done = after;
            arrived.fetched += Bytes(count as u64);
            progress(Progress::of(self.file, after, self.info.size));
        }
        if arrived.done < self.info.size {
            return Err(Failure::passing(self.error(format!("the connection ended at {} of {}", arrived.done, self.info.size))));
        }
        Ok(())
    }

    /// Where the body of an answer begins: at `asked` with 206, at zero with 200. Checks that its length fits.
    fn start_of(&self, response: &Response<Body>, asked: Bytes) -> Result<Bytes, Failure> {
        let refused = |reason: String| Err(Failure::for_good(self.error(reason)));
        let start = match response.status().as_u16() {
            200 => Bytes::ZERO,
            206 => {
                let range = header(response.headers(), "content-range").unwrap_or_default();
                let start = range.strip_prefix("bytes ").and_then(|rest| rest.split('-').next()?.parse::<u64>().ok());
                match start {
                    Some(start) if start == asked.0 => asked,
                    _ => return refused(format!("asked for bytes from {} on and got `{range}`", asked.0)),
                }
            }
            status => return refused(format!("unexpected status {status}")),
        };
        let length = header(response.headers(), "content-length").and_then(|length| length.parse::<u64>().ok());
        match length {
            Some(length) if start.0.checked_add(length) != Some(self.info.size.0) => {
                let announced = self.info.size.saturating_sub(start).0;
                refused(format!("the server offers {length} bytes where it announced {announced}; try again later"))
            }
            _ => Ok(start),
        }
    }

    fn error(&self, reason: String) -> Error {
        network(&self.url, reason)
    }
}
