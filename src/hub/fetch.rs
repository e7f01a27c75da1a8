//! One file from the hub into the cache: resumed, checked, and visible only when it is whole.

use std::io::{Read, Seek, SeekFrom, Write};

use ureq::Body;
use ureq::http::Response;

use super::Progress;
use super::cache::{Partial, RepoCache};
use super::client::{Client, Failure, FileInfo, Retry, header, network};
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

/// Brings `file` of `commit` into the cache, where it is not there yet. Returns the bytes that came over the network.
pub(super) fn fetch_file(
    client: &Client,
    cache: &RepoCache,
    commit: &str,
    file: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Bytes> {
    // A commit never changes, so what lies under its name needs no question to the hub.
    if let Some(size) = cache.snapshot_file_size(commit, file) {
        progress(Progress { file, done: size, total: size });
        return Ok(Bytes::ZERO);
    }
    let url = client.file_url(cache.repo(), commit, file);
    let info = client.file_info(&url)?;
    let fetch = Fetch { client, url, file, info };
    let mut fetched = Bytes::ZERO;
    if cache.blob_size(&fetch.info.etag) != Some(fetch.info.size) {
        let mut partial = cache.open_partial(&fetch.info.etag)?;
        // Another process may have brought the blob between the two looks.
        if cache.blob_size(&fetch.info.etag) != Some(fetch.info.size) {
            fetched = fetch.fill(&mut partial, progress)?;
            cache.keep_partial(partial, &fetch.info.etag)?;
        }
    }
    progress(Progress { file, done: fetch.info.size, total: fetch.info.size });
    cache.link(commit, file, &fetch.info.etag)?;
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
    /// Reads until the file is whole. A connection that breaks is taken up where it ended, as long as each brings something.
    fn fill(&self, partial: &mut Partial, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Bytes> {
        let there = partial.len()?;
        let mut arrived = Arrived { done: if there > self.info.size { Bytes::ZERO } else { there }, fetched: Bytes::ZERO };
        let mut failed = 0;
        while arrived.done < self.info.size {
            let before = arrived.done;
            if let Err(failure) = self.read_once(partial, &mut arrived, progress) {
                failed = if arrived.done > before { 1 } else { failed + 1 };
                self.client.wait_or_give_up(failure, failed)?;
            }
        }
        let finish = partial.file.set_len(self.info.size.0).and_then(|()| partial.file.sync_all());
        finish.map_err(|source| partial.io("finish", source))?;
        Ok(arrived.fetched)
    }

    /// One request for what is missing; `arrived` counts also where the connection breaks.
    fn read_once(&self, partial: &mut Partial, arrived: &mut Arrived, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), Failure> {
        let mut response = self.client.open(&self.url, arrived.done)?;
        arrived.done = self.start_of(&response, arrived.done)?;
        let seek = partial.file.seek(SeekFrom::Start(arrived.done.0));
        seek.map_err(|source| for_good(partial.io("write", source)))?;
        let mut body = response.body_mut().as_reader();
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let read = body.read(&mut block);
            let count = read.map_err(|fault| self.fault(format!("the connection broke at {}: {fault}", arrived.done), Retry::Soon))?;
            if count == 0 {
                break;
            }
            let after = arrived.done + Bytes(count as u64);
            if after > self.info.size {
                // What is on disk came from a server that does not keep its word.
                partial.discard().map_err(for_good)?;
                arrived.done = Bytes::ZERO;
                return Err(self.fault(format!("the server sends more than the {} that it announced", self.info.size), Retry::Never));
            }
            partial.file.write_all(&block[..count]).map_err(|source| for_good(partial.io("write", source)))?;
            arrived.done = after;
            arrived.fetched += Bytes(count as u64);
            progress(Progress { file: self.file, done: after, total: self.info.size });
        }
        if arrived.done < self.info.size {
            return Err(self.fault(format!("the connection ended at {} of {}", arrived.done, self.info.size), Retry::Soon));
        }
        Ok(())
    }

    /// Where the body of an answer begins: at `asked` with 206, at zero with 200. Checks that its length fits.
    fn start_of(&self, response: &Response<Body>, asked: Bytes) -> Result<Bytes, Failure> {
        let start = match response.status().as_u16() {
            200 => Bytes::ZERO,
            206 => {
                let range = header(response.headers(), "content-range").unwrap_or_default();
                let start = range.strip_prefix("bytes ").and_then(|rest| rest.split('-').next()?.parse::<u64>().ok());
                match start {
                    Some(start) if start == asked.0 => asked,
                    _ => return Err(self.fault(format!("asked for bytes from {} on and got `{range}`", asked.0), Retry::Never)),
                }
            }
            status => return Err(self.fault(format!("unexpected status {status}"), Retry::Never)),
        };
        let length = header(response.headers(), "content-length").and_then(|length| length.parse::<u64>().ok());
        match length {
            Some(length) if start.0.checked_add(length) != Some(self.info.size.0) => {
                let announced = self.info.size.saturating_sub(start).0;
                Err(self.fault(format!("the server offers {length} bytes where it announced {announced}; try again later"), Retry::Never))
            }
            _ => Ok(start),
        }
    }

    fn fault(&self, fault: String, retry: Retry) -> Failure {
        Failure { error: network(&self.url, fault), retry }
    }
}

fn for_good(error: Error) -> Failure {
    Failure { error, retry: Retry::Never }
}
