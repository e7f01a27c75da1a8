//! Host → GPU by the queue, which copies the bytes and writes them in the order of submissions. Knows no shapes.

/// Writes `bytes` at `offset` of `buffer` (which needs `COPY_DST`) before what is submitted next. `offset` is a multiple of 4;
/// where the length is not, up to three zero bytes follow, for which the buffer has room.
pub fn write(queue: &wgpu::Queue, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks::<{ wgpu::COPY_BUFFER_ALIGNMENT as usize }>();
    let words = words.as_flattened();
    if !words.is_empty() {
        queue.write_buffer(buffer, offset, words);
    }
    if !rest.is_empty() {
        let mut last = [0; wgpu::COPY_BUFFER_ALIGNMENT as usize];
        last[..rest.len()].copy_from_slice(rest);
        queue.write_buffer(buffer, offset + words.len() as u64, &last);
    }
}
