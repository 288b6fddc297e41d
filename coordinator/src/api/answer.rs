//! Answers on their way: what all of them together may hold in memory, and that each is taken by its client.
//!
//! A large one, which is in memory as a whole, takes its share of a budget until it is sent, and is handed out in
//! pieces, so that no more than a piece waits inside HTTP. That one, and one that streams, is watched: while the next
//! piece is not asked for, it is the client's turn, and whoever takes too long for it loses the connection. A small
//! answer goes as it is, but by HTTP/2, where one stream can be stuck while the connection is not.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::Version;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::problem::{ApiError, ProblemKind};
use super::stall::Stall;

/// An answer of more bytes than these is large; and the bytes of its pieces.
const PIECE_BYTES: usize = 64 << 10;

/// What large answers may hold, in pieces. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Budget {
    /// So many bytes for all.
    pub(super) fn of(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / PIECE_BYTES)))
    }

    /// An answer as it is sent to the client of this connection.
    pub(super) fn send(&self, version: Version, response: Response, stall: &Stall) -> Response {
        let size = response.body().size_hint().exact();
        let is_small = size.is_some_and(|size| size <= PIECE_BYTES as u64);
        if size == Some(0) || (is_small && version != Version::HTTP_2) {
            return response;
        }
        let large = size.filter(|_| !is_small);
        let pieces = large.map(|size| u32::try_from(size.div_ceil(PIECE_BYTES as u64)).unwrap_or(u32::MAX));
        // A stream has in memory only what it hands out.
        let share = pieces.map(|pieces| Arc::clone(&self.0).try_acquire_many_owned(pieces)).transpose();
        let Ok(share) = share else {
            let detail = "too many large answers are under way; ask for a smaller page, or try again";
            return ApiError::new(ProblemKind::Overloaded, detail).into_response();
        };
        let (turns, turn) = watch::channel(Turn::Theirs);
        tokio::spawn(watch_over(turn, stall.clone()));
        response.map(|body| Body::new(Sent { body, rest: Bytes::new(), turns, _share: share }))
    }
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Ours,
    Theirs,
}

/// Gives the connection up when the client's turn takes too long.
async fn watch_over(mut turn: watch::Receiver<Turn>, stall: Stall) {
    loop {
        let whose = *turn.borrow_and_update();
        let changed = match whose {
            Turn::Ours => Ok(turn.changed().await),
            Turn::Theirs => tokio::time::timeout(stall.time_max, turn.changed()).await,
        };
        match changed {
            Ok(Ok(())) => {}
            // The answer is sent, or its connection gone.
            Ok(Err(_)) => return,
            Err(_) => return stall.given_up.cancel(),
        }
    }
}

/// A body in pieces.
struct Sent {
    body: Body,
    /// What of the last frame was not yet handed out.
    rest: Bytes,
    turns: watch::Sender<Turn>,
    _share: Option<OwnedSemaphorePermit>,
}

type Frame = http_body::Frame<Bytes>;

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, axum::Error>>> {
        self.turns.send_if_modified(|turn| std::mem::replace(turn, Turn::Ours) == Turn::Theirs);
        if self.rest.is_empty() {
            match std::task::ready!(pin!(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        self.turns.send_replace(Turn::Theirs);
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    // Its end is never told before it is asked for: then all before it has gone out.

    fn size_hint(&self) -> http_body::SizeHint {
        let rest = self.rest.len() as u64;
        let hint = self.body.size_hint();
        let mut all = http_body::SizeHint::new();
        all.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper() {
            all.set_upper(upper.saturating_add(rest));
        }
        all
    }
}
