//! `cargo xtask metrics`: the page of all metrics, and how large and how long a scrape is. Both ask real nodes, which
//! tests of the node start; this module only runs them.

use anyhow::Result;
use clap::Subcommand;

use crate::steps::{cargo, run, step};

/// The test that compares the page, and writes it where this variable is set.
const PAGE_TEST: &str = "metrics::an_idle_node_tells_everything_and_the_page_describes_it";
const WRITE: &str = "DEBROS_WRITE_DOCS";
/// The test that fills a node with 10,000 subscriptions and as many databases as this variable says.
const SCRAPE_TEST: &str = "metrics::a_scrape_is_small_whatever_a_node_has";
const DATABASES: &str = "DEBROS_SCRAPE_DATABASES";

/// What to do with metrics.
#[derive(Subcommand)]
pub(crate) enum Metrics {
    /// Write docs/metrics.md from what an idle node and a client register.
    Page,
    /// Scrape a node with 500 databases and 10,000 subscriptions; the time counts in a release build.
    Scrape {
        /// Build without optimisation.
        #[arg(long)]
        debug: bool,
    },
}

/// Does it.
pub(crate) fn metrics(command: &Metrics) -> Result<()> {
    let test = ["test", "-p", "debros-node", "--test", "cluster"];
    match command {
        Metrics::Page => step("metrics page", || {
            let mut written = cargo(&[&test[..], &["--", "--exact", PAGE_TEST]].concat());
            written.env(WRITE, "1");
            run(written)
        }),
        Metrics::Scrape { debug } => {
            let release: &[&str] = if *debug { &[] } else { &["--release"] };
            let shown = ["--", "--exact", SCRAPE_TEST, "--nocapture"];
            step("metrics scrape", || {
                let mut scraped = cargo(&[&test[..], release, &shown].concat());
                scraped.env(DATABASES, "500");
                run(scraped)
            })
        }
    }
}
