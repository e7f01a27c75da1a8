//! How long a measurement may take. Knows nothing of what is measured.

use std::cell::Cell;
use std::time::Duration;

use super::Measure;
use crate::error::Result;
use crate::platform::{self, clock::Instant};

/// Most times that one run does its work.
const MAX_REPEATS: usize = 4096;

/// The length and number of runs, and the time by which all should be done.
#[derive(Debug)]
pub(super) struct Effort {
    /// What one run should take at least: long enough that clocks and submissions are small beside it.
    pub(super) secs_per_run: f64,
    /// What the disk is read for at most.
    pub(super) disk_secs: f64,
    /// Runs per figure.
    n_runs: usize,
    /// How long all may take.
    length: Duration,
    measure: Measure,
    deadline: Cell<Instant>,
}

impl Effort {
    /// The effort of `measure`; `None` where nothing may be measured.
    pub(super) fn of(measure: Measure) -> Option<Effort> {
        let (secs_per_run, disk_secs, n_runs, secs) = match measure {
            Measure::Never => return None,
            // Somebody waits for the page, and clocks of browsers are coarse.
            Measure::Quick if !platform::MAY_BLOCK => (0.01, 0.0, 24, 0.6),
            Measure::Quick => (0.005, 0.25, 5, 0.8),
            Measure::Full | Measure::Tune => (0.03, 1.5, 9, 8.0),
        };
        let length = Duration::from_secs_f64(secs);
        Some(Effort { secs_per_run, disk_secs, n_runs, length, measure, deadline: Cell::new(Instant::now() + length) })
    }

    /// The same effort in a part of the time, from now on.
    pub(super) fn part(&self, part: f64) -> Effort {
        let length = self.length.mul_f64(part);
        Effort { length, deadline: Cell::new(Instant::now() + length), ..*self }
    }

    /// The effort of one of `n` figures, where each has its share of the time: in a browser, so that the last ones are not measured in a hurry.
    pub(super) fn of_figure(&self, n: usize) -> Option<Effort> {
        (!platform::MAY_BLOCK).then(|| self.part(1.0 / n as f64))
    }

    /// Whether code runs that nothing is known of yet: a browser compiles it anew, and better, once it has run for a while.
    pub(super) fn is_warming_up(&self) -> bool {
        !platform::MAY_BLOCK && Instant::now() + self.length.mul_f64(0.6) < self.deadline.get()
    }

    /// The effort of a search for the fastest kernels: on hardware, whose best shapes nobody knows, longer than for all rates together;
    /// on a software adapter, of which more is known, a part of that.
    pub(super) fn of_search(&self, is_software: bool) -> Effort {
        let secs = match (self.measure, is_software) {
            (Measure::Tune, _) => 60.0,
            (Measure::Quick, true) => 0.2,
            (_, true) => 2.0,
            (_, false) => 3.2,
        };
        self.part(secs / self.length.as_secs_f64())
    }

    /// Whether the search for the fastest kernels is to leave nothing out.
    pub(super) fn is_full_search(&self) -> bool {
        self.measure == Measure::Tune
    }

    /// The same effort once more, from now on.
    pub(super) fn anew(&self) -> Effort {
        self.part(1.0)
    }

    /// Runs work that is not measured, such as a first run, which compiles: its time is not taken from that of the others.
    pub(super) fn beside<T>(&self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = work();
        self.deadline.set(self.deadline.get() + begin.elapsed());
        done
    }

    /// As [`Effort::beside`], of work that is awaited. In a browser, where somebody waits for all of it, it does take time away.
    pub(super) async fn beside_awaited<T>(&self, work: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = work.await;
        if platform::MAY_BLOCK {
            self.deadline.set(self.deadline.get() + begin.elapsed());
        }
        done
    }

    /// The least of what `run` returns, over all runs, since other work on the machine can only add time. Past the deadline there
    /// is one run only: a slow machine is measured less precisely, but completely.
    pub(super) fn best(&self, mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
        let (mut best, mut done) = (run()?, 1);
        while self.wants_more(done) {
            (best, done) = (best.min(run()?), done + 1);
        }
        Ok(best)
    }

    /// As [`Effort::best`], of runs that are awaited.
    pub(super) async fn best_awaited(&self, mut run: impl AsyncFnMut() -> Result<f64>) -> Result<f64> {
        let (mut best, mut done) = (run().await?, 1);
        while self.wants_more(done) {
            (best, done) = (best.min(run().await?), done + 1);
        }
        Ok(best)
    }

    /// Seconds of work that `run` does so many times: their number grows until a run takes its time, beside which clocks are fine.
    pub(super) async fn secs_of_one(&self, mut run: impl AsyncFnMut(usize) -> Result<f64>) -> Result<f64> {
        if self.is_hurried() {
            return run(1).await;
        }
        // The first run compiles and touches memory.
        self.beside_awaited(run(1)).await?;
        let mut repeats = 1;
        let mut secs = run(repeats).await?;
        while secs < self.secs_per_run * 0.8 && repeats < MAX_REPEATS {
            let growth = (self.secs_per_run / secs).clamp(1.5, 16.0);
            repeats = ((repeats as f64 * growth).ceil() as usize).min(MAX_REPEATS);
            secs = run(repeats).await?;
        }
        Ok(self.best_awaited(async || run(repeats).await).await? / repeats as f64)
    }

    /// Whether a single run is to do for each figure that is left, without one beside: in a browser, once all the time is spent.
    pub(super) fn is_hurried(&self) -> bool {
        !platform::MAY_BLOCK && self.is_over()
    }

    /// Whether all the time is spent.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline.get()
    }

    fn wants_more(&self, done: usize) -> bool {
        done < self.n_runs && !self.is_over()
    }
}

/// The median of `values`, which are not empty; of an even number, the upper one.
pub(super) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds that `work` takes.
pub(super) fn time(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_of_all_runs_until_time_is_up() {
        let effort = Effort::of(Measure::Quick).unwrap();
        let mut values = [3.0, 4.0, 2.0, 5.0, 6.0, 9.0, 1.0].into_iter();
        assert_eq!(effort.best(|| Ok(values.next().unwrap())).unwrap(), 2.0);
        effort.deadline.set(Instant::now());
        assert_eq!(effort.best(|| Ok(values.next().unwrap())).unwrap(), 9.0);
        let before = effort.deadline.get();
        effort.beside(|| std::thread::sleep(Duration::from_millis(30)));
        assert!(effort.deadline.get() >= before + Duration::from_millis(30), "what stands beside takes no time away");
        assert!(Effort::of(Measure::Never).is_none());
        assert_eq!(middle(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
