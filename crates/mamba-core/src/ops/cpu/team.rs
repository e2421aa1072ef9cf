//! Threads that wait awake, for a moment, for the next piece of work.
//!
//! A token passes through some hundred products, each of which takes tens of microseconds and needs the one before it. A
//! thread pool that is called from outside puts the caller to sleep and wakes a worker for each, which takes as long.
//! Here the caller works, too, and helpers that have just worked look for more before they sleep, so that
//! a hand-over is no system call. Nothing waits for a helper that took no task.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Threads past which memory, which is what such work waits for, gives no more.
const MOST: usize = 16;

/// How long a helper looks for work before it sleeps: longer than what a token's step does on one thread
/// between two products.
const AWAKE: Duration = Duration::from_micros(100);

/// How long it does so without letting other threads of the machine go first.
const EAGER: Duration = Duration::from_micros(30);

/// Looks between two looks at the clock.
const LOOKS: usize = 64;

/// Runs `work` once for each number below `tasks`, on this thread and on helpers that are free; all is done when it returns.
/// Within a pool of one thread, or while another thread shares work, it runs on this thread alone.
///
/// # Panics
/// If `work` does, after all tasks were taken.
pub(super) fn share(tasks: usize, work: impl Fn(usize) + Sync) {
    let threads = rayon::current_num_threads();
    if tasks < 2 || threads < 2 || !Team::get(threads).share(tasks, &work) {
        (0..tasks).for_each(work);
    }
}

/// Work that is being shared.
#[derive(Clone, Copy)]
struct Job {
    /// Lives until all tasks are done.
    work: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Team {
    /// Held by the thread that shares work.
    turn: Mutex<()>,
    job: UnsafeCell<Option<Job>>,
    /// Tasks of the job that nobody has taken.
    left: AtomicUsize,
    /// Tasks of the job that are done.
    done: AtomicUsize,
    /// What the first task that panicked left.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    helpers: Vec<Helper>,
}

#[derive(Default)]
struct Helper {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

// SAFETY: only `job` is not shareable by itself. It is written by the holder of `turn` while no task is left to take and
// all are done, and read by those who took a task that is not done.
unsafe impl Sync for Team {}

impl Team {
    /// The process's team, made for `threads` threads when it is first asked for.
    fn get(threads: usize) -> &'static Self {
        static TEAM: OnceLock<&'static Team> = OnceLock::new();
        TEAM.get_or_init(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let helpers = threads.min(cores).min(MOST) - 1;
            let team: &'static Team = Box::leak(Box::new(Team {
                turn: Mutex::new(()),
                job: UnsafeCell::new(None),
                left: AtomicUsize::new(0),
                done: AtomicUsize::new(0),
                panic: Mutex::new(None),
                helpers: (0..helpers).map(|_| Helper::default()).collect(),
            }));
            for (index, helper) in team.helpers.iter().enumerate() {
                let name = format!("mamba-helper-{index}");
                // Where the system gives no more threads, those that there are do the work.
                drop(
                    thread::Builder::new()
                        .name(name)
                        .spawn(|| team.help(helper)),
                );
            }
            team
        })
    }

    /// Whether it did the work, which it leaves alone if another thread is sharing some or there are no helpers.
    fn share(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
        if self.helpers.is_empty() {
            return false;
        }
        let Ok(turn) = self.turn.try_lock() else {
            return false;
        };
        // SAFETY: the reference is used by tasks alone, and this function returns when all of them are done.
        let work = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work)
        };
        // SAFETY: the last job is done, and nobody can take a task of the next one yet.
        unsafe { *self.job.get() = Some(Job { work, tasks }) };
        self.done.store(0, Ordering::Relaxed);
        // In one order with what `sleep` does: either the helper sees the tasks or this thread sees it asleep.
        self.left.store(tasks, Ordering::SeqCst);
        for helper in self.helpers.iter().take(tasks - 1) {
            if helper.asleep.swap(false, Ordering::SeqCst)
                && let Some(thread) = helper.thread.get()
            {
                thread.unpark();
            }
        }
        while self.take() {}
        let mut looks = 0;
        while self.done.load(Ordering::Acquire) < tasks {
            spin_loop();
            looks += 1;
            // A helper whose core was taken away may need this one.
            if looks % LOOKS == 0 {
                thread::yield_now();
            }
        }
        let panic = self.panic.lock().map_or(None, |mut panic| panic.take());
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    /// Takes a task and does it, if one is left.
    fn take(&self) -> bool {
        let fewer = |left: usize| left.checked_sub(1);
        let taken = self
            .left
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, fewer);
        let Ok(left) = taken else {
            return false;
        };
        // SAFETY: the job was written before its tasks could be taken, and stays until this one is done.
        let Some(job) = (unsafe { *self.job.get() }) else {
            return false;
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.work)(job.tasks - left)))
            && let Ok(mut first) = self.panic.lock()
        {
            first.get_or_insert(panic);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    /// What a helper does all its life.
    fn help(&self, helper: &Helper) {
        // Set once: each helper has one thread.
        let _ = helper.thread.set(thread::current());
        loop {
            while self.take() {}
            let idle = Instant::now();
            while self.left.load(Ordering::Relaxed) == 0 {
                (0..LOOKS)
                    .take_while(|_| self.left.load(Ordering::Relaxed) == 0)
                    .for_each(|_| spin_loop());
                match idle.elapsed() {
                    waited if waited > AWAKE => self.sleep(helper),
                    waited if waited > EAGER => thread::yield_now(),
                    _ => {}
                }
            }
        }
    }

    /// Sleeps until there is work.
    fn sleep(&self, helper: &Helper) {
        helper.asleep.store(true, Ordering::SeqCst);
        while self.left.load(Ordering::SeqCst) == 0 && helper.asleep.load(Ordering::SeqCst) {
            thread::park();
        }
        helper.asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    }

    #[test]
    fn each_task_runs_once_whether_helpers_are_awake_or_asleep() {
        for round in 0..3000_usize {
            let tasks = round % 17;
            let ran: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            share(tasks, |task| {
                ran[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(ran.iter().all(|ran| ran.load(Ordering::Relaxed) == 1));
            if round % 500 == 0 {
                thread::sleep(2 * AWAKE);
            }
        }
    }

    #[test]
    fn many_threads_may_share_work_at_once_and_within_tasks() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        share(5, |outer| {
                            share(3, |inner| {
                                sum.fetch_add(10 * outer + inner, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 3 * 100 + 5 * 3);
                    }
                });
            }
        });
    }

    #[test]
    fn a_pool_of_one_thread_stays_on_it() {
        pool(1).install(|| {
            let here = thread::current().id();
            share(8, |_| assert_eq!(thread::current().id(), here));
        });
    }

    #[test]
    fn a_panic_of_any_task_comes_back_and_leaves_the_team_whole() {
        for bad in 0..6 {
            let share_all = || {
                share(6, |task| {
                    assert!(task != bad, "task {task}");
                    thread::sleep(Duration::from_micros(50));
                });
            };
            let panic = catch_unwind(share_all).unwrap_err();
            let message = panic.downcast_ref::<String>().unwrap();
            assert_eq!(message, &format!("task {bad}"));
        }
        let ran = AtomicUsize::new(0);
        share(6, |_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 6);
    }
}
