//! Guides of one model: compiled on threads of their own, and kept while there is room.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;

use crate::config::{GuidedBackend, Parameters, Source};
use crate::decode::guided::{COMPILE_STACK_BYTES, Guide, GuideSource, GuideToken, Guides};
use crate::error::{Error, Result, ResultExt};
use crate::ids::TokenId;
use crate::text::{Tokenizer, TokenizerFiles, Vocabulary};

/// Most guides that are kept, and most bytes of their texts.
const CACHED_GUIDES: usize = 512;
const CACHED_BYTES: usize = 16 << 20;

/// Most requests whose guides wait to be compiled.
const QUEUE: usize = 4096;

/// Threads of a model that compile.
const THREADS: usize = 2;

/// How long a request waits for its guides. Limits of work bound a compilation too; this one counts the wait for a thread
/// and the time that a busy machine takes.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// What is called with the guides of a request, on another thread unless all of them are known.
type Then = Box<dyn FnOnce(Result<Vec<Guide>>) + Send>;

/// Taken by whoever is first: the thread that has compiled, or the clock.
type Waiter = Mutex<Option<Then>>;

struct Job {
    sources: Vec<GuideSource>,
    waiter: Arc<Waiter>,
}

/// The ways to the threads.
struct Threads {
    jobs: SyncSender<Job>,
    /// Who waits, and until when.
    clock: Sender<(Instant, Weak<Waiter>)>,
}

/// Where guides come from.
pub struct GuideStore {
    shared: Arc<Shared>,
    threads: OnceLock<Threads>,
    time_limit: Duration,
}

struct Shared {
    tokenizer: Arc<Tokenizer>,
    vocab_size: usize,
    /// Made for the first guide: it takes a second for a large vocabulary.
    guides: OnceLock<Result<Guides>>,
    cache: Mutex<Cache>,
}

impl GuideStore {
    /// `tokenizer` says what the tokens of a vocabulary of `vocab_size` stand for.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize) -> Self {
        let shared = Shared { tokenizer, vocab_size, guides: OnceLock::new(), cache: Mutex::default() };
        Self { shared: Arc::new(shared), threads: OnceLock::new(), time_limit: TIME_LIMIT }
    }

    /// Calls `then` with the guides, in the order of `sources`; at once if all of them are kept, with an error when the
    /// time limit has passed.
    pub fn resolve(&self, sources: Vec<GuideSource>, then: impl FnOnce(Result<Vec<Guide>>) + Send + 'static) {
        let known: Option<Vec<_>> = {
            let mut cache = self.shared.cache.lock();
            sources.iter().map(|source| cache.find(source)).collect()
        };
        if let Some(guides) = known {
            return then(Ok(guides));
        }
        let threads = self.threads.get_or_init(|| start(&self.shared));
        let waiter: Arc<Waiter> = Arc::new(Mutex::new(Some(Box::new(then))));
        // Without a clock there is no limit of time.
        let _ = threads.clock.send((Instant::now() + self.time_limit, Arc::downgrade(&waiter)));
        let (job, reason) = match threads.jobs.try_send(Job { sources, waiter }) {
            Ok(()) => return,
            Err(TrySendError::Full(job)) => (job, format!("{QUEUE} guides wait to be compiled, try again later")),
            Err(TrySendError::Disconnected(job)) => (job, "there is no thread that compiles guides".to_owned()),
        };
        answer(&job.waiter, || Err(Error::unavailable(reason)));
    }
}

/// Calls who waits, unless that was done.
fn answer(waiter: &Waiter, guides: impl FnOnce() -> Result<Vec<Guide>>) {
    let Some(then) = waiter.lock().take() else { return };
    if catch_unwind(AssertUnwindSafe(|| then(guides()))).is_err() {
        tracing::error!("submitting a guided request panicked");
    }
}

/// The threads end when the store is gone.
fn start(shared: &Arc<Shared>) -> Threads {
    let (jobs, queue) = sync_channel::<Job>(QUEUE);
    let (clock, waiters) = channel();
    if let Err(error) = thread::Builder::new().name("compile-clock".into()).spawn(move || watch(&waiters)) {
        tracing::error!("cannot start the thread that limits the time of guides: {error}");
    }
    let queue = Arc::new(Mutex::new(queue));
    for index in 0..THREADS {
        let (shared, queue) = (shared.clone(), queue.clone());
        let work = move || run(&shared, &queue);
        let thread = thread::Builder::new().name(format!("compile-{index}")).stack_size(COMPILE_STACK_BYTES);
        if let Err(error) = thread.spawn(work) {
            tracing::error!("cannot start a thread that compiles guides: {error}");
        }
    }
    Threads { jobs, clock }
}

/// Answers those whose time is over.
fn watch(waiters: &Receiver<(Instant, Weak<Waiter>)>) {
    let mut queue: VecDeque<(Instant, Weak<Waiter>)> = VecDeque::new();
    loop {
        let next = match queue.front() {
            Some((due, _)) => waiters.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => waiters.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(entry) => {
                let at = queue.partition_point(|(due, _)| *due <= entry.0);
                queue.insert(at, entry);
            }
            Err(RecvTimeoutError::Timeout) => {
                let waiter = queue.pop_front().and_then(|(_, waiter)| waiter.upgrade());
                let late =
                    || Err(Error::unavailable("guided_decoding_guide was not compiled in time, try again later"));
                waiter.iter().for_each(|waiter| answer(waiter, late));
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn run(shared: &Shared, queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().recv();
        let Ok(Job { sources, waiter }) = job else { return };
        if waiter.lock().is_none() {
            continue;
        }
        let guides = catch_unwind(AssertUnwindSafe(|| sources.iter().map(|source| shared.guide(source)).collect()));
        let guides = guides.unwrap_or_else(|_| Err(Error::internal("compiling the guide failed")));
        answer(&waiter, || guides);
    }
}

impl Shared {
    fn guide(&self, source: &GuideSource) -> Result<Guide> {
        if let Some(guide) = self.cache.lock().find(source) {
            return Ok(guide);
        }
        let guides = self.guides.get_or_init(|| Guides::new(&guide_tokens(&self.tokenizer, self.vocab_size)));
        let guide = guides.as_ref().map_err(Clone::clone)?.compile(source).context("guided_decoding_guide")?;
        self.cache.lock().insert(guide.clone());
        Ok(guide)
    }
}

fn guide_tokens(tokenizer: &Tokenizer, vocab_size: usize) -> Vec<GuideToken> {
    let token = |id: usize| {
        let bytes = tokenizer.token_bytes(id as TokenId).unwrap_or_default();
        match tokenizer.is_special(id as TokenId) {
            true => GuideToken::Special(String::from_utf8_lossy(bytes).into_owned()),
            false => GuideToken::Text(bytes.to_vec()),
        }
    };
    (0..vocab_size).map(token).collect()
}

/// The guides that were used last.
#[derive(Default)]
struct Cache {
    guides: HashMap<GuideSource, (Guide, u64)>,
    bytes: usize,
    uses: u64,
}

impl Cache {
    fn find(&mut self, source: &GuideSource) -> Option<Guide> {
        self.uses += 1;
        let (guide, used) = self.guides.get_mut(source)?;
        *used = self.uses;
        Some(guide.clone())
    }

    fn insert(&mut self, guide: Guide) {
        self.uses += 1;
        let source = guide.source().clone();
        self.bytes += guide.source_bytes();
        if let Some((old, _)) = self.guides.insert(source, (guide, self.uses)) {
            self.bytes -= old.source_bytes();
        }
        while self.guides.len() > 1 && (self.guides.len() > CACHED_GUIDES || self.bytes > CACHED_BYTES) {
            let oldest = self.guides.iter().min_by_key(|(_, (_, used))| *used).map(|(source, _)| source.clone());
            let Some(oldest) = oldest else { return };
            if let Some((guide, _)) = self.guides.remove(&oldest) {
                self.bytes -= guide.source_bytes();
            }
        }
    }
}

/// The tokenizer that guided decoding takes its vocabulary from: the model's own, else that of upstream's file; or why
/// there is none.
///
/// # Errors
/// A file that is given and needed, and does not exist or load; beside such a file, a backend of another name.
pub fn guide_tokenizer(
    parameters: &Parameters,
    tokenizer: Option<&Arc<Tokenizer>>,
) -> Result<std::result::Result<Arc<Tokenizer>, String>> {
    if parameters.guided_decoding_backend.value == Some(GuidedBackend::Off) {
        return Ok(Err("guided_decoding_backend is off".to_owned()));
    }
    let (backend, info_path) = (&parameters.guided_decoding_backend, &parameters.xgrammar_tokenizer_info_path.value);
    if backend.source == Source::Unparsable && info_path.is_some() {
        return Err(Error::invalid(format!(
            "guided_decoding_backend is {:?}, expected one of {}",
            backend.text.as_deref().unwrap_or_default(),
            GuidedBackend::WORDS.join(", ")
        )));
    }
    if let Some(tokenizer) = tokenizer {
        return Ok(Ok(tokenizer.clone()));
    }
    let Some(path) = info_path.as_deref() else {
        return Ok(Err("the model has no tokenizer: set tokenizer_dir or xgrammar_tokenizer_info_path".to_owned()));
    };
    if !Path::new(path).exists() {
        return Err(Error::invalid(format!("xgrammar_tokenizer_info_path is {path:?}, which does not exist")));
    }
    let tokenizer = read_info(path).context("xgrammar_tokenizer_info_path")?;
    Ok(Ok(Arc::new(tokenizer)))
}

/// Upstream's description of a tokenizer: a JSON object whose `tokenizer_str` is the text of a `tokenizer.json`.
fn read_info(path: &str) -> Result<Tokenizer> {
    let wrong = |reason: String| Error::invalid(format!("{path:?}: {reason}"));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let info: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let tokenizer = info["tokenizer_str"].as_str().ok_or_else(|| wrong("tokenizer_str is missing".to_owned()))?;
    let stop_ids = &info["stop_token_ids"];
    Tokenizer::new(&TokenizerFiles {
        tokenizer: Vocabulary::Json(tokenizer.to_owned()),
        generation_config: stop_ids.is_array().then(|| serde_json::json!({ "eos_token_id": stop_ids }).to_string()),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::guided::GuideKind;
    use std::sync::mpsc::channel;

    fn store() -> GuideStore {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/bytelevel");
        GuideStore::new(Arc::new(Tokenizer::load(&path).unwrap()), 300)
    }

    fn resolve(store: &GuideStore, text: &str) -> Result<Guide> {
        let (done, result) = channel();
        let source = GuideSource { kind: GuideKind::Regex, text: text.to_owned() };
        store.resolve(vec![source], move |guides| done.send(guides).unwrap());
        result.recv().unwrap().map(|guides| guides[0].clone())
    }

    #[test]
    fn a_guide_is_compiled_once() {
        let store = store();
        assert_eq!(resolve(&store, "a+").unwrap(), resolve(&store, "a+").unwrap());
        assert!(resolve(&store, "a(").unwrap_err().message().starts_with("guided_decoding_guide: the regex guide"));
    }

    #[test]
    fn who_waits_too_long_is_told_and_the_others_are_served() {
        let mut store = store();
        let source = |text: &str| vec![GuideSource { kind: GuideKind::Regex, text: text.to_owned() }];
        let (release, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (entered, inside) = channel();
        for text in ["a", "b"] {
            let (gate, entered) = (gate.clone(), entered.clone());
            store.resolve(source(text), move |_| {
                entered.send(()).unwrap();
                let _ = gate.lock().recv();
            });
        }
        // Both threads are busy.
        (0..THREADS).for_each(|_| inside.recv().unwrap());
        store.time_limit = Duration::ZERO;
        let error = resolve(&store, "c").unwrap_err();
        assert!(error.message().contains("guided_decoding_guide was not compiled in time"), "{error}");
        drop(release);
        store.time_limit = TIME_LIMIT;
        assert!(resolve(&store, "c").is_ok());
    }

    #[test]
    fn t09_the_guides_that_are_kept_are_bounded() {
        let store = store();
        let first = resolve(&store, "kept").unwrap();
        for number in 0..CACHED_GUIDES + 100 {
            resolve(&store, &format!("x{number}")).unwrap();
            if number % 100 == 0 {
                resolve(&store, "kept").unwrap();
            }
        }
        assert!(store.shared.cache.lock().guides.len() <= CACHED_GUIDES);
        assert_eq!(resolve(&store, "kept").unwrap(), first);
    }
}
