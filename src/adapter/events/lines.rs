//! Events as JSON lines, in TensorRT-LLM's form.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::EventSink;
use crate::engine::KvEventBatch;
use crate::error::{Error, Result};

/// A reader that takes nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_millis(100);

fn text(batch: &KvEventBatch) -> String {
    batch.events.iter().map(|event| event.to_json() + "\n").collect()
}

/// Appended to a file.
pub(super) struct FileLines {
    file: File,
    failed: bool,
}

impl FileLines {
    pub fn open(path: &str) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|error| Error::unavailable(format!("kv_event_sink: cannot write {path}: {error}")))?;
        Ok(Self { file, failed: false })
    }
}

impl EventSink for FileLines {
    fn publish(&mut self, batch: &KvEventBatch) {
        if let Err(error) = self.file.write_all(text(batch).as_bytes())
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::error!("KV cache events cannot be written: {error}");
        }
    }
}

/// Sent to everybody who has connected to a socket.
pub(super) struct SocketLines {
    path: String,
    listener: UnixListener,
    readers: Vec<UnixStream>,
}

impl SocketLines {
    pub fn bind(path: &str) -> Result<Self> {
        let refused = |error| Error::unavailable(format!("kv_event_sink: cannot listen on {path}: {error}"));
        // A socket without a listener is what a server left behind that was killed.
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
            && UnixStream::connect(path).is_err()
        {
            fs::remove_file(path).map_err(refused)?;
        }
        let listener = UnixListener::bind(path).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        Ok(Self { path: path.to_owned(), listener, readers: Vec::new() })
    }
}

impl EventSink for SocketLines {
    fn tend(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((reader, _)) => match reader.set_write_timeout(Some(PATIENCE)) {
                    Ok(()) => self.readers.push(reader),
                    Err(error) => tracing::warn!("a reader of KV cache events was refused: {error}"),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return tracing::warn!("a reader of KV cache events was refused: {error}"),
            }
        }
    }

    fn publish(&mut self, batch: &KvEventBatch) {
        let text = text(batch);
        self.readers.retain_mut(|reader| match reader.write_all(text.as_bytes()) {
            Ok(()) => true,
            Err(error) => {
                tracing::info!("a reader of KV cache events is let go: {error}");
                false
            }
        });
    }
}

impl Drop for SocketLines {
    fn drop(&mut self) {
        // Somebody else may have taken the file away.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{KvEvent, KvEventData};
    use std::io::{BufRead, BufReader, Read};
    use std::path::Path;

    fn batch(id: u64) -> KvEventBatch {
        let data = KvEventData::Removed { block_hashes: vec![id] };
        KvEventBatch { events: vec![KvEvent { event_id: id, data }], ..KvEventBatch::default() }
    }

    #[test]
    fn whoever_connects_to_the_socket_reads_lines_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sock");
        let path = path.to_str().unwrap();
        let mut sink = SocketLines::bind(path).unwrap();
        sink.publish(&batch(1));
        let mut readers = [(); 2].map(|()| BufReader::new(UnixStream::connect(path).unwrap()));
        sink.tend();
        sink.publish(&batch(2));
        for reader in &mut readers {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line.trim_end(), batch(2).events[0].to_json());
        }
        let [stays, leaves] = readers;
        drop(leaves);
        sink.publish(&batch(3));
        sink.publish(&batch(4));
        assert_eq!(sink.readers.len(), 1, "who has left is forgotten");
        drop(sink);
        let rest = stays.lines().map(std::result::Result::unwrap).collect::<Vec<_>>();
        assert_eq!(rest, [3, 4].map(|id| batch(id).events[0].to_json()));
        assert!(!Path::new(path).exists(), "the socket goes with its sink");
    }

    #[test]
    fn a_socket_that_a_killed_server_left_is_taken_over_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(SocketLines::bind(path.to_str().unwrap()).unwrap());
        fs::write(&path, "mine").unwrap();
        let error = SocketLines::bind(path.to_str().unwrap()).err().unwrap();
        assert!(error.message().contains("cannot listen"), "{error}");
        let _in_use = SocketLines::bind(folder.path().join("b").to_str().unwrap()).unwrap();
        assert!(SocketLines::bind(folder.path().join("b").to_str().unwrap()).is_err(), "somebody listens there");
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "mine");
    }
}
