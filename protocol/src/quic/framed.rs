//! Frames over quinn's streams. A stream that ends inside a frame is an error: quinn finishes a stream whose
//! sender was dropped, even by a panic, so an end alone proves nothing.

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::codec::EncodeError;
use crate::frame::{self, FrameError};
use crate::limit;

/// Most bytes taken from a stream at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Why no frame came.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The connection or the stream is gone.
    #[error("the stream was lost")]
    Stream(#[from] quinn::ReadError),
    /// The peer broke the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended before a whole frame, or before one that had to come.
    #[error("the stream ended inside a message")]
    Ended,
}

/// Why a frame could not be sent.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The connection is gone, or the peer reads no more.
    #[error("the stream was lost")]
    Stream(#[from] quinn::WriteError),
    /// The message exceeds a frame: nothing was sent.
    #[error(transparent)]
    Message(#[from] EncodeError),
}

/// The receiving half of a stream of frames.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
}

impl FrameReader {
    /// Reads frames from `stream`.
    #[must_use]
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next message; `None` when the stream was finished after the last one.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: bytes that came are kept for the next call.
    ///
    /// # Errors
    /// When the stream is lost, ends inside a frame, or carries no `T`.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ReadError> {
        self.next_within(limit::FRAME_BYTES_MAX).await
    }

    async fn next_within<T: DeserializeOwned>(&mut self, limit: usize) -> Result<Option<T>, ReadError> {
        loop {
            if let Some(message) = frame::read_within(&mut self.buffer, limit)? {
                return Ok(Some(message));
            }
            if self.buffer.is_empty() && self.buffer.capacity() > CHUNK_BYTES {
                // One large frame is no reason to keep so much for as long as the stream lives.
                self.buffer = BytesMut::new();
            }
            match self.stream.read_chunk(CHUNK_BYTES, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ReadError::Ended),
            }
        }
    }

    /// The next message, which has to come.
    ///
    /// # Cancel safety
    /// As [`FrameReader::next`].
    ///
    /// # Errors
    /// As [`FrameReader::next`], and when the stream was finished.
    pub async fn expect<T: DeserializeOwned>(&mut self) -> Result<T, ReadError> {
        self.next().await?.ok_or(ReadError::Ended)
    }

    /// The next message, which has to come and to have no more than `limit` bytes: so much of it is kept at most
    /// while the rest doesn't come.
    ///
    /// # Cancel safety
    /// As [`FrameReader::next`].
    ///
    /// # Errors
    /// As [`FrameReader::expect`], and when the frame announces more.
    pub async fn expect_within<T: DeserializeOwned>(&mut self, limit: usize) -> Result<T, ReadError> {
        self.next_within(limit).await?.ok_or(ReadError::Ended)
    }

    /// The raw bytes behind the frames read so far: first what was buffered, then the stream as it comes; `None`
    /// at its end.
    ///
    /// # Cancel safety
    /// As [`FrameReader::next`].
    ///
    /// # Errors
    /// When the stream is lost.
    pub async fn raw(&mut self) -> Result<Option<Bytes>, ReadError> {
        if !self.buffer.is_empty() {
            return Ok(Some(self.buffer.split().freeze()));
        }
        Ok(self.stream.read_chunk(CHUNK_BYTES, true).await?.map(|chunk| chunk.bytes))
    }

    /// The stream, to stop it with a code.
    pub fn stream(&mut self) -> &mut RecvStream {
        &mut self.stream
    }
}

/// The sending half of a stream of frames.
#[derive(Debug)]
pub struct FrameWriter {
    stream: SendStream,
    buffer: Vec<u8>,
}

impl FrameWriter {
    /// Sends frames on `stream`.
    #[must_use]
    pub fn new(stream: SendStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Adds a message to those that [`FrameWriter::flush`] sends in one write.
    ///
    /// # Errors
    /// When it exceeds a frame: nothing was added.
    pub fn push<T: Serialize>(&mut self, message: &T) -> Result<(), EncodeError> {
        frame::write(&mut self.buffer, message)
    }

    /// Sends what was pushed.
    ///
    /// # Cancel safety
    /// None: a dropped future may leave half a frame on the stream, which is of no use after it.
    ///
    /// # Errors
    /// When the stream is lost.
    pub async fn flush(&mut self) -> Result<(), WriteError> {
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        self.buffer.shrink_to(CHUNK_BYTES);
        Ok(())
    }

    /// Sends one message.
    ///
    /// # Cancel safety
    /// None, as [`FrameWriter::flush`].
    ///
    /// # Errors
    /// When it exceeds a frame, or the stream is lost.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), WriteError> {
        self.push(message)?;
        self.flush().await
    }

    /// The stream, for raw bytes behind the frames sent so far.
    pub fn stream(&mut self) -> &mut SendStream {
        &mut self.stream
    }
}
