//! What recording took of the throughput: ratios of the same round, their mean, and how far it can be trusted. It measures nothing.
//!
//! The mean is the trimmed one: a tenth of the ratios at either end is left out, so that a turn that something disturbed moves it little and what
//! happens in one turn of five, a scrape, still counts. The interval is Yuen's for it (Tukey and McLaughlin, 1963): two standard errors.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// With fewer rounds there is no such certainty.
const ROUNDS_MIN: usize = 6;
/// The part of the ratios that is left out at either end.
const TRIMMED: f64 = 0.1;
/// So many standard errors on either side hold the truth in 19 of 20 cases.
const STANDARD_ERRORS: f64 = 2.0;

/// What one turn gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    pub(super) ops_per_s: f64,
    /// CPU time of the servers, all of them together, for one operation.
    pub(super) cpu_us_per_op: f64,
}

/// What one recording gave at one work, round by round.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures(Vec<Figure>);

impl Figures {
    pub(super) fn push(&mut self, figure: Figure) {
        self.0.push(figure);
    }

    fn mean(&self, of: fn(&Figure) -> f64) -> f64 {
        Spread::of(self.0.iter().map(of).collect()).mean
    }

    /// In each round, a figure of these over the same of others.
    fn over(&self, others: &Self, of: fn(&Figure) -> f64) -> Spread {
        Spread::of(self.0.iter().zip(&others.0).map(|(one, other)| of(one) / of(other)).collect())
    }
}

/// A trimmed mean and where it lies with 95 % certainty.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    mean: f64,
    from: f64,
    to: f64,
}

impl Spread {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "there are at most a thousand rounds"
    )]
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (count, out) = (values.len(), (values.len() as f64 * TRIMMED) as usize);
        let mean_of = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let mean = mean_of(&values[out..count - out]);
        // What was left out counts for the error as if it were the last that was not.
        let winsorized: Vec<f64> = (0..count).map(|at| values[at.clamp(out, count - out - 1)]).collect();
        let middle = mean_of(&winsorized);
        let squares: f64 = winsorized.iter().map(|value| (value - middle).powi(2)).sum();
        let deviation = (squares / (count as f64 - 1.0).max(1.0)).sqrt();
        let error = deviation / ((1.0 - 2.0 * TRIMMED) * (count as f64).sqrt());
        Self { mean, from: mean - STANDARD_ERRORS * error, to: mean + STANDARD_ERRORS * error }
    }
}

/// What is said of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Nothing was compared.
    Reference,
    /// It is kept, with certainty.
    Within,
    /// The mean keeps it, or does not, but so few rounds cannot tell.
    Undecided,
    /// It is broken, with certainty.
    Over,
}

/// What a recording cost at a work.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Loss {
    work: &'static str,
    recorded: &'static str,
    rounds: usize,
    ops_per_s: f64,
    cpu_us_per_op: f64,
    /// The part of the throughput that was lost, and between which two it lies; less than nothing is a gain.
    loss: f64,
    loss_from: f64,
    loss_to: f64,
    /// How much more CPU time an operation took, as a part of what it took without.
    cpu_more: f64,
    limit: f64,
    verdict: Verdict,
}

impl Loss {
    pub(super) fn of(
        work: &'static str,
        recorded: &'static str,
        limit: f64,
        figures: &Figures,
        reference: &Figures,
    ) -> Self {
        let kept = figures.over(reference, |figure| figure.ops_per_s);
        let cpu = figures.over(reference, |figure| figure.cpu_us_per_op);
        let (loss, loss_from, loss_to) = (1.0 - kept.mean, 1.0 - kept.to, 1.0 - kept.from);
        Self {
            work,
            recorded,
            rounds: figures.0.len(),
            ops_per_s: figures.mean(|figure| figure.ops_per_s),
            cpu_us_per_op: figures.mean(|figure| figure.cpu_us_per_op),
            loss,
            loss_from,
            loss_to,
            cpu_more: cpu.mean - 1.0,
            limit,
            verdict: judged(loss_from, loss_to, limit, figures.0.len()),
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// In words.
    pub(super) fn told(&self) -> String {
        let Self { work, recorded, loss, limit, .. } = self;
        format!("{work} with {recorded} loses {}, and may lose {}", percent(*loss), percent(*limit))
    }

    fn cells(&self) -> [String; 9] {
        let Self { work, recorded, rounds, ops_per_s, cpu_us_per_op, .. } = self;
        let is_reference = self.verdict == Verdict::Reference;
        let compared = |text: String| if is_reference { "-".to_owned() } else { text };
        let verdict = match self.verdict {
            Verdict::Reference => "compared with",
            Verdict::Within => "kept",
            Verdict::Undecided if self.loss <= self.limit => "kept, not certainly",
            Verdict::Undecided => "over, not certainly",
            Verdict::Over => "OVER",
        };
        [
            (*work).to_owned(),
            (*recorded).to_owned(),
            rounds.to_string(),
            format!("{ops_per_s:.0}"),
            compared(percent(self.loss)),
            compared(format!("{} to {}", percent(self.loss_from), percent(self.loss_to))),
            compared(percent(self.limit)),
            format!("{cpu_us_per_op:.1} {}", compared(format!("({:+.1} %)", self.cpu_more * 100.0))),
            verdict.to_owned(),
        ]
    }
}

fn judged(loss_from: f64, loss_to: f64, limit: f64, rounds: usize) -> Verdict {
    match limit {
        0.0 => Verdict::Reference,
        _ if rounds < ROUNDS_MIN => Verdict::Undecided,
        _ if loss_to <= limit => Verdict::Within,
        _ if loss_from > limit => Verdict::Over,
        _ => Verdict::Undecided,
    }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// As a table.
pub(super) fn table(losses: &[Loss]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "work",
        "recorded",
        "rounds",
        "ops/s",
        "lost",
        "95 % sure",
        "limit",
        "cpu us/op",
        "verdict",
    ]);
    for loss in losses {
        table.add_row(loss.cells());
    }
    for column in table.column_iter_mut().skip(2).take(6) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::{Figure, Figures, Loss, Spread, Verdict, table};

    fn figures(ops: &[f64]) -> Figures {
        let mut figures = Figures::default();
        ops.iter().for_each(|ops| figures.push(Figure { ops_per_s: *ops, cpu_us_per_op: 1e6 / ops }));
        figures
    }

    fn verdict(ops: &[f64]) -> Verdict {
        Loss::of("work", "metrics", 0.02, &figures(ops), &figures(&vec![100.0; ops.len()])).verdict()
    }

    #[test]
    fn single_turns_that_were_disturbed_move_the_mean_little() {
        let values = [1.0, 0.99, 1.01, 1.0, 0.99, 1.01, 1.0, 0.99, 1.01, 0.2];
        let Spread { mean, from, to } = Spread::of(values.to_vec());
        assert!((mean - 0.998_75).abs() < 1e-9, "{mean}");
        assert!(from > 0.985 && to < 1.012, "{from} {to}");
        // One in five is no disturbance.
        let fifth = [1.0, 1.0, 0.9, 1.0, 1.0].repeat(4);
        assert!(Spread::of(fifth).mean < 0.99);
        assert_eq!(Spread::of(vec![2.0]), Spread { mean: 2.0, from: 2.0, to: 2.0 });
    }

    #[test]
    fn a_limit_is_kept_or_broken_only_where_the_whole_interval_says_so() {
        assert_eq!(verdict(&[99.0; 10]), Verdict::Within);
        assert_eq!(verdict(&[97.0; 10]), Verdict::Over);
        assert_eq!(verdict(&[99.0, 97.0].repeat(4)), Verdict::Undecided);
        assert_eq!(verdict(&[97.0; 5]), Verdict::Undecided);
    }

    #[test]
    fn the_table_tells_each_build_and_what_it_is_compared_with() {
        let losses = [
            Loss::of("insert", "nothing", 0.0, &figures(&[100.0]), &figures(&[100.0])),
            Loss::of("insert", "metrics", 0.02, &figures(&[99.0]), &figures(&[100.0])),
        ];
        let shown = table(&losses);
        assert!(
            shown.contains("compared with") && shown.contains("1.0 %") && shown.contains("kept"),
            "{shown}"
        );
    }
}
