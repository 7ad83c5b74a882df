//! The threads of the CPU device: one persistent pool per thread count in a process.
//!
//! A kernel of 1 ms cannot afford to wake threads through the kernel each time, so workers spin a while before they
//! park. Devices with the same number of threads share a pool and their calls take turns: two models never run more
//! threads than one.

use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::any::Any;
use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks: longer than the gap between two kernels of a step.
const SPIN: Duration = Duration::from_micros(150);
/// Spins between two looks at the clock.
const SPINS_PER_LOOK: usize = 64;
/// Spins of the caller before it yields its core to a worker that may have lost its own.
const SPINS_BEFORE_YIELD: usize = 4096;

/// A task of a job: called with each index once.
type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// A fixed set of threads that run the tasks of one job at a time. The calling thread is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while a job runs: jobs of several devices take turns.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Job number (high half) and tasks not yet claimed (low half). Whoever lowers the low half owns a task of
    /// exactly that job, and the job cannot end before the owner has reported.
    ticket: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    finished: AtomicUsize,
    panic: Mutex<Option<String>>,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    num_tasks: usize,
}

// SAFETY: `job` is written only by the caller that holds `turn`, while `ticket` shows no unclaimed task, and is read
// only by owners of a claimed task, whom that caller waits for before it returns and so before the next write.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, so that any thread may call it.
unsafe impl Send for Shared {}

impl Pool {
    /// The pool of `threads` threads, shared by every device of the process with that number.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn shared(threads: usize) -> Result<Arc<Self>> {
        static POOLS: LazyLock<Mutex<HashMap<usize, Weak<Pool>>>> = LazyLock::new(Mutex::default);
        let mut pools = POOLS.lock();
        if let Some(pool) = pools.get(&threads).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        let pool = Arc::new(Self::new(threads)?);
        pools.insert(threads, Arc::downgrade(&pool));
        Ok(pool)
    }

    fn new(threads: usize) -> Result<Self> {
        let num_workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            finished: AtomicUsize::new(0),
            panic: Mutex::new(None),
            parked: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, turn: Mutex::new(()), workers: Vec::with_capacity(num_workers) };
        for index in 0..num_workers {
            let shared = pool.shared.clone();
            let worker =
                thread::Builder::new().name(format!("trtllm-cpu-{index}")).spawn(move || shared.work(index)).map_err(
                    |error| Error::internal(format!("starting CPU thread {index} of {num_workers}: {error}")),
                )?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that run tasks, the caller's included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with every index below `num_tasks`, on all threads, and waits for the last. Not to be called from
    /// a task.
    ///
    /// # Errors
    /// When a task panics; the other tasks run all the same.
    pub fn run(&self, num_tasks: usize, task: &Task<'_>) -> Result<()> {
        if num_tasks == 0 {
            return Ok(());
        }
        let _turn = self.turn.lock();
        let shared = &*self.shared;
        if num_tasks == 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(|index| shared.call(task, index));
        } else {
            self.publish(task, num_tasks);
            while shared.run_one_task() {}
            shared.wait_for(num_tasks);
        }
        match shared.panic.lock().take() {
            None => Ok(()),
            Some(message) => Err(Error::internal(format!("a CPU kernel panicked: {message}"))),
        }
    }

    fn publish(&self, task: &Task<'_>, num_tasks: usize) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; `run` returns after the last call of the task.
        let task = unsafe { std::mem::transmute::<&Task<'_>, *const Task<'static>>(task) };
        // SAFETY: see `Sync for Shared`: `run` holds `turn`, and the job before has ended.
        unsafe { *shared.job.get() = Some(Job { task, num_tasks }) };
        shared.finished.store(0, Ordering::Relaxed);
        let epoch = (shared.ticket.load(Ordering::Relaxed) >> 32) + 1;
        shared.ticket.store((epoch << 32) | num_tasks as u64, Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked).take(num_tasks - 1) {
            if parked.swap(false, Ordering::SeqCst) {
                unpark(worker.thread());
            }
        }
    }
}

fn unpark(thread: &Thread) {
    thread.unpark();
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            unpark(worker.thread());
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so that joining cannot fail.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life: run tasks, spin, park.
    fn work(&self, index: usize) {
        while !self.stop.load(Ordering::SeqCst) {
            if self.run_one_task() {
                continue;
            }
            if self.spin() {
                continue;
            }
            self.parked[index].store(true, Ordering::SeqCst);
            // The look after the mark: a job published between the two sees the mark and unparks.
            if !self.has_task() && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.parked[index].store(false, Ordering::SeqCst);
        }
    }

    fn has_task(&self) -> bool {
        self.ticket.load(Ordering::SeqCst) as u32 != 0
    }

    /// Waits a while for a task. Whether there is one.
    fn spin(&self) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..SPINS_PER_LOOK {
                if self.has_task() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN || self.stop.load(Ordering::SeqCst) {
                return false;
            }
        }
    }

    /// Claims a task and runs it. Whether there was one.
    fn run_one_task(&self) -> bool {
        let claim = self
            .ticket
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |ticket| (ticket as u32 != 0).then(|| ticket - 1));
        let Ok(ticket) = claim else { return false };
        // SAFETY: see `Sync for Shared`: this thread owns a claimed task that it has not reported.
        let job = unsafe { *self.job.get() };
        let Some(job) = job else { return false };
        let index = job.num_tasks - (ticket as u32 as usize);
        // SAFETY: the caller of `run` keeps the closure alive until every claimed task is reported.
        self.call(unsafe { &*job.task }, index);
        self.finished.fetch_add(1, Ordering::AcqRel);
        true
    }

    fn call(&self, task: &Task<'_>, index: usize) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(index))) {
            *self.panic.lock() = Some(panic_message(&*payload));
        }
    }

    fn wait_for(&self, num_tasks: usize) {
        let mut spins = 0;
        while self.finished.load(Ordering::Acquire) < num_tasks {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for num_tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_of_a_task_is_an_error_and_the_pool_works_on() {
        let pool = Pool::new(3).unwrap();
        let error = pool.run(50, &|index| assert!(index != 17, "task 17 is bad")).unwrap_err();
        assert!(error.message().contains("task 17 is bad"), "{error}");
        pool.run(50, &|_| ()).unwrap();
    }

    #[test]
    fn a_job_after_the_workers_have_parked_runs() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            pool.run(4, &|_| ()).unwrap();
            thread::sleep(SPIN * 10);
        }
    }

    #[test]
    fn callers_of_one_pool_take_turns() {
        let pool = Pool::shared(2).unwrap();
        assert!(Arc::ptr_eq(&pool, &Pool::shared(2).unwrap()));
        let running = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let task = |_: usize| {
                            assert!(running.fetch_add(1, Ordering::SeqCst) < 2, "more tasks at once than threads");
                            running.fetch_sub(1, Ordering::SeqCst);
                        };
                        pool.run(8, &task).unwrap();
                    }
                });
            }
        });
    }
}
