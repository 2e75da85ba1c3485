//! A large object that is being written.

use std::fmt;
use std::io;

use bytes::Bytes;
use object_store::{ObjectStoreExt, WriteMultipart};

use super::requests::wait;
use super::{Condition, Object};
use crate::format::error::{CacheError, CacheResult};
use crate::storage::sink::RemoteWrite;

/// The pieces that a large object is sent in. A store takes ten thousand of them.
const PIECE: usize = 16 * 1024 * 1024;
/// Pieces on their way at a time.
const PIECES_AT_ONCE: usize = 4;

/// An object that is being written; dropped, it is aborted.
///
/// What fits into one piece is sent in one request, which the store makes conditional. More is sent
/// in pieces; no store makes a condition of the last of them through `object_store`, so what is there
/// is looked at just before.
pub(super) struct Upload {
    object: Object,
    condition: Condition,
    sent: Sent,
    /// The piece under way.
    piece: Vec<u8>,
}

/// What became of the pieces before the one under way.
enum Sent {
    Nothing,
    Pieces(WriteMultipart),
    /// A piece is lost: what comes after it is no whole object.
    Failed,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({})", self.object.path().display())
    }
}

impl Upload {
    /// An object that is written in the place of what `condition` says.
    pub(super) fn new(object: Object, condition: Condition) -> Self {
        Self { object, condition, sent: Sent::Nothing, piece: Vec::new() }
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE)));
        let mut write = match std::mem::replace(&mut self.sent, Sent::Failed) {
            Sent::Nothing => self.begin().map_err(io::Error::other)?,
            Sent::Pieces(write) => write,
            Sent::Failed => return Err(io::Error::other("an earlier piece of it failed")),
        };
        let (write, room) = wait(async move {
            let room = write.wait_for_capacity(PIECES_AT_ONCE).await;
            write.put(piece);
            (write, room)
        })
        .map_err(io::Error::other)?;
        self.sent = Sent::Pieces(write);
        room.map_err(io::Error::other)
    }

    fn begin(&self) -> CacheResult<WriteMultipart> {
        let (store, key) = self.object.client()?;
        let upload = wait(async move { store.put_multipart(&key).await })?;
        let upload = upload.map_err(|error| self.object.wrong("write", error))?;
        Ok(WriteMultipart::new_with_chunk_size(upload, PIECE))
    }
}

impl RemoteWrite for Upload {
    /// Takes bytes, and waits while too many are on their way.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() == PIECE {
            self.send()?;
        }
        let room = PIECE - self.piece.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.piece.extend_from_slice(taken);
        Ok(taken.len())
    }

    /// Sends the rest; only then is the object there.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] where something else is there than the condition allows.
    fn finish(mut self: Box<Self>) -> CacheResult<()> {
        if matches!(self.sent, Sent::Nothing) {
            let bytes = std::mem::take(&mut self.piece);
            return self.object.put(bytes, &self.condition).map(|_| ());
        }
        self.send().map_err(|error| CacheError::io(self.object.path(), "write", error))?;
        self.object.require(&self.condition)?;
        let Sent::Pieces(write) = std::mem::replace(&mut self.sent, Sent::Failed) else {
            return Ok(());
        };
        let done = wait(async move { write.finish().await })?;
        done.map(|_| ()).map_err(|error| self.object.wrong("write", error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Sent::Pieces(write) = std::mem::replace(&mut self.sent, Sent::Failed) {
            // What the store keeps of it is no object; the first error says more.
            let _ = wait(async move { write.abort().await });
        }
    }
}
