//! One epoll instance with tokens, awaited by the runtime: a single descriptor for all pipes or all processes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use tokio::io::unix::AsyncFd;

use super::sys;

/// Most tokens of one turn.
const TOKENS_MAX: usize = 256;

/// Descriptors to wait for.
#[derive(Debug)]
pub(super) struct Poll {
    epoll: AsyncFd<OwnedFd>,
}

impl Poll {
    /// Must be called inside a runtime.
    pub(super) fn new() -> io::Result<Self> {
        let epoll = sys::register(epoll::create(epoll::CreateFlags::CLOEXEC)?)?;
        Ok(Self { epoll })
    }

    /// Reports `token` for as long as `source` is readable, or closed at its other end. Who is added again gets the
    /// new token.
    pub(super) fn add(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        self.add_for(source, token, epoll::EventFlags::IN)
    }

    /// Reports `token` whenever something happened out of band, as in `cgroup.events`.
    pub(super) fn add_urgent(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        self.add_for(source, token, epoll::EventFlags::PRI)
    }

    fn add_for(&self, source: impl AsFd, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        let token = epoll::EventData::new_u64(token);
        match epoll::add(&self.epoll, &source, token, flags) {
            Err(rustix::io::Errno::EXIST) => Ok(epoll::modify(&self.epoll, source, token, flags)?),
            result => Ok(result?),
        }
    }

    /// Reports `source` no more.
    pub(super) fn remove(&self, source: impl AsFd) {
        let _ = epoll::delete(&self.epoll, source);
    }

    /// The tokens of what is ready, at least one. Cancel-safe: they are reported again until they are handled.
    pub(super) async fn ready(&self) -> io::Result<Vec<u64>> {
        loop {
            let mut guard = self.epoll.readable().await?;
            let mut events = Vec::with_capacity(TOKENS_MAX);
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::io::retry_on_intr(|| {
                epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now))
            })?;
            if events.is_empty() {
                guard.clear_ready();
                continue;
            }
            // Readiness spends none of the runtime's budget: while one source is always ready, only this lets the
            // runtime see to its timers and to all others.
            tokio::task::yield_now().await;
            return Ok(events.into_iter().map(|event: epoll::Event| event.data.u64()).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_that_is_given_away_reports_its_new_owner_and_a_removed_one_nobody() {
        let poll = Poll::new().unwrap();
        let (first, _closed) = rustix::pipe::pipe().map(|(read, write)| (read, drop(write))).unwrap();
        poll.add(&first, 1).unwrap();
        assert_eq!(poll.ready().await.unwrap(), [1]);
        poll.add(&first, 2).unwrap();
        assert_eq!(poll.ready().await.unwrap(), [2]);
        let (second, _closed) = rustix::pipe::pipe().map(|(read, write)| (read, drop(write))).unwrap();
        poll.add(&second, 3).unwrap();
        poll.remove(&first);
        assert_eq!(poll.ready().await.unwrap(), [3]);
    }
}
