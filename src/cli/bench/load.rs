//! How long a model takes to load beside reading its files, in one run, and what the host holds meanwhile.

use super::{ModelArgs, dtype};
use crate::device::{self, DType, SharedDevice, Tensor};
use crate::error::{Error, Result};
use crate::runner::{ModelOptions, ModelSource, load, plan};
use clap::Args;
use rustix::fs::{Advice, fadvise};
use serde_json::json;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that a thread reads at once: as much as loading takes.
const PIECE_BYTES: usize = 4 << 20;
const MAX_THREADS: usize = 16;
const WEIGHTS: [&str; 4] = ["safetensors", "gguf", "bin", "engine"];

#[derive(Debug, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// How often the files are read and the model is loaded, in turn; the fastest counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Tokens of the KV cache: it is made at load, too.
    #[arg(long, default_value_t = 4096)]
    kv_tokens: usize,
    /// Drops the files from the page cache before each reading and loading: what the first start costs.
    #[arg(long)]
    cold: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Seconds of one turn.
struct Times {
    read: f64,
    /// `None`: the device has no room.
    read_into_device: Option<f64>,
    load: f64,
    weights: f64,
}

/// Reads and loads in turn, and prints both times with their ratio.
///
/// # Errors
/// When there are no weights, or the model cannot be loaded.
pub fn run(args: &LoadArgs) -> Result<()> {
    let ModelSource::Folder(path) = args.model.source()? else {
        return Err(Error::invalid("bench load reads files: give --model"));
    };
    let files = weight_files(&path)?;
    let bytes: u64 = files.iter().map(|(_, len)| len).sum();
    let options = ModelOptions {
        device: args.model.device.device,
        dtype: args.model.dtype.map(dtype),
        max_batch_size: Some(8),
        ..ModelOptions::new(ModelSource::Folder(path.clone()))
    };
    let device = device::open(options.device, &options.gpu_ids, &options.device_options)?;
    let longest = plan(&options)?.limits.max_seq_len_tokens.min(args.kv_tokens);
    let options = ModelOptions { max_seq_len: Some(longest), kv_max_tokens: Some(args.kv_tokens), ..options };
    if !args.json {
        println!("files      {} MiB in {}: {}", bytes >> 20, files.len(), path.display());
    }
    let (mut turns, mut most_held) = (Vec::new(), 0);
    for turn in 1..=args.runs.max(1) {
        let (times, held) = measure(&files, &device, &options, args.cold)?;
        if !args.json {
            println!("run {turn}      {}; the host held {} MiB more at most", shown(&times, bytes), held >> 20);
        }
        turns.push(times);
        most_held = most_held.max(held);
    }
    let least = |of: fn(&Times) -> f64| turns.iter().map(of).fold(f64::INFINITY, f64::min);
    let (read, load, weights) = (least(|times| times.read), least(|times| times.load), least(|times| times.weights));
    let into_device =
        Some(least(|times| times.read_into_device.unwrap_or(f64::INFINITY))).filter(|time| time.is_finite());
    if args.json {
        let report = json!({
            "bytes": bytes, "read_seconds": read, "read_into_device_seconds": into_device, "load_seconds": load,
            "weight_seconds": weights, "weights_to_reading": weights / read,
            "weights_to_reading_into_device": into_device.map(|time| weights / time), "host_held_bytes": most_held,
        });
        println!("{report:#}");
        return Ok(());
    }
    println!("ratio      {:.2} of weights ({weights:.2} s) to reading ({read:.2} s)", weights / read);
    if let Some(time) = into_device {
        println!("           {:.2} to reading into new memory of the device ({time:.2} s)", weights / time);
    }
    Ok(())
}

/// One turn, and what the host held more while it loaded.
fn measure(
    files: &[(PathBuf, u64)],
    device: &SharedDevice,
    options: &ModelOptions,
    cold: bool,
) -> Result<(Times, usize)> {
    let prepare = || if cold { drop_from_page_cache(files) } else { Ok(()) };
    prepare()?;
    let read = read_all(files, None)?;
    prepare()?;
    let read_into_device = read_into_new_memory(files, device)?;
    prepare()?;
    let before = anonymous_bytes();
    let (loaded, most) = watched(|| load(options));
    let report = loaded?.report;
    let times = Times { read, read_into_device, load: report.seconds, weights: report.weight_seconds };
    Ok((times, most.saturating_sub(before)))
}

fn shown(times: &Times, bytes: u64) -> String {
    let into_device = times.read_into_device.map_or_else(|| "not measured".to_owned(), |time| format!("{time:.2} s"));
    format!(
        "read {:.2} s ({:.2} GB/s), into new memory of the device {into_device}, loaded in {:.2} s, of that weights {:.2} s",
        times.read,
        bytes as f64 / times.read / 1e9,
        times.load,
        times.weights
    )
}

/// [`read_all`] into memory of the device that nobody has touched yet; `None`: the device has no room for it.
fn read_into_new_memory(files: &[(PathBuf, u64)], device: &SharedDevice) -> Result<Option<f64>> {
    let pieces = files.iter().map(|(_, len)| len.div_ceil(PIECE_BYTES as u64) as usize).sum();
    let cols = PIECE_BYTES / DType::F32.size();
    let Ok(out) = Tensor::zeros(device, pieces, cols, DType::F32, "reading into new memory") else { return Ok(None) };
    read_all(files, Some((device, &out))).map(Some)
}

/// Lets the system forget the contents of files, so that the next reader waits for the disk.
fn drop_from_page_cache(files: &[(PathBuf, u64)]) -> Result<()> {
    for (path, _) in files {
        let fail =
            |error: io::Error| Error::invalid(format!("cannot drop {} from the page cache: {error}", path.display()));
        let file = File::open(path).map_err(fail)?;
        // Pages that are not written yet stay.
        file.sync_all().map_err(fail)?;
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| fail(error.into()))?;
    }
    Ok(())
}

/// The weights of a model with their sizes.
fn weight_files(path: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let size = |path: PathBuf| fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|data| (path, data.len()));
    let is_weights = |path: &PathBuf| path.extension().is_some_and(|end| WEIGHTS.iter().any(|known| end == *known));
    let files: Vec<_> = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(is_weights).filter_map(size).collect(),
        Err(_) => size(path.to_owned()).into_iter().collect(),
    };
    match files.is_empty() {
        true => Err(Error::not_found(format!("{} holds no weights", path.display()))),
        false => Ok(files),
    }
}

/// Seconds to read all files piece by piece, by as many threads as loading uses: into a buffer of each thread, or into the
/// rows of a tensor.
fn read_all(files: &[(PathBuf, u64)], into: Option<(&SharedDevice, &Tensor)>) -> Result<f64> {
    let fail = |path: &Path, error| Error::invalid(format!("cannot read {}: {error}", path.display()));
    let start = Instant::now();
    let opened: Vec<_> = files
        .iter()
        .map(|(path, len)| File::open(path).map(|file| (path, file, *len)).map_err(|error| fail(path, error)))
        .collect::<Result<_>>()?;
    let pieces: Vec<_> = opened
        .iter()
        .flat_map(|(path, file, len)| (0..*len).step_by(PIECE_BYTES).map(move |at| (path, file, at)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut buffer = vec![0; PIECE_BYTES];
        let mut tensor = match into {
            Some((device, out)) => Some((device.transfers(PIECE_BYTES, 0, 2)?, out)),
            None => None,
        };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((path, file, at)) = pieces.get(index) else { return Ok(()) };
            let mut fill = |out: &mut [u8]| {
                let mut done = 0;
                while done < out.len() {
                    match file.read_at(&mut out[done..], at + done as u64).map_err(|error| fail(path, error))? {
                        0 => break,
                        count => done += count,
                    }
                }
                Ok(())
            };
            match &mut tensor {
                Some((transfers, out)) => transfers.fill(&out.row_range(index, 1), &mut fill)?,
                None => fill(&mut buffer)?,
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| Error::internal("a reader panicked"))?)
    })?;
    Ok(start.elapsed().as_secs_f64())
}

/// What `run` returns, and the most anonymous memory of the process while it ran.
fn watched<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(anonymous_bytes());
                thread::sleep(Duration::from_millis(5));
            }
            most
        });
        let result = run();
        done.store(true, Ordering::Relaxed);
        (result, watcher.join().unwrap_or(0))
    })
}

/// Resident memory that no file backs; 0 where the system does not say.
fn anonymous_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok()).unwrap_or(0) << 10
}
