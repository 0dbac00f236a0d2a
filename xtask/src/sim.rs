//! Whole nodes in simulated time, the long forms: builds the node's simulation test and hands the
//! arguments to it. What they mean is decided there.

use anyhow::Result;
use clap::Subcommand;

use crate::steps::{cargo, run};

/// What to simulate.
#[derive(Subcommand)]
pub(crate) enum Simulation {
    /// Three nodes and clients of the SQL database, under faults: one process per seed. A failing seed
    /// prints how to repeat it and joins the corpus.
    Sql(Seeds),
    /// The same with clients of registers, whose histories must be linearizable, watched and locked over.
    Registers(Seeds),
    /// Nodes that join and leave, and clients of the key-value storage, under faults.
    Kv(Seeds),
    /// Publishers and subscribers that come and go, at nodes that join, leave, die and lose packets.
    Pubsub(Seeds),
    /// The same with one bug planted after the other: each must be caught.
    Planted {
        #[command(flatten)]
        seeds: Seeds,
        /// Only the bugs that this scenario has to catch: `sql`, `registers`, `kv` or `pubsub`.
        #[arg(long)]
        scenario: Option<String>,
    },
    /// What an operation of the storage costs in clusters of 3, 12, 48 and 100 nodes.
    Scale,
    /// Many nodes that know one address, until each is a member and knows all others.
    Mesh {
        /// How many.
        #[arg(long, default_value_t = 100)]
        nodes: usize,
    },
}

/// Which seeds.
#[derive(clap::Args)]
pub(crate) struct Seeds {
    /// How many.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// How long the clients work, in simulated seconds.
    #[arg(long, default_value_t = 30)]
    secs: u64,
    /// Only this bug.
    #[arg(long)]
    planted: Option<String>,
    /// Write each seed's history into this folder.
    #[arg(long)]
    histories: Option<String>,
}

/// Runs it.
pub(crate) fn simulate(simulation: &Simulation) -> Result<()> {
    let (name, seeds) = match simulation {
        Simulation::Sql(seeds) => ("sql", Some(seeds)),
        Simulation::Registers(seeds) => ("registers", Some(seeds)),
        Simulation::Kv(seeds) => ("kv", Some(seeds)),
        Simulation::Pubsub(seeds) => ("pubsub", Some(seeds)),
        Simulation::Planted { seeds, .. } => ("planted", Some(seeds)),
        Simulation::Scale => ("scale", None),
        Simulation::Mesh { .. } => ("mesh", None),
    };
    let plants = name == "planted" || seeds.is_some_and(|seeds| seeds.planted.is_some());
    let mut command = cargo(&["test", "--quiet", "--package", "debros-node", "--test", "simulation"]);
    if plants {
        command.args(["--features", "planted-bugs"]);
    }
    // What is measured is what is shipped.
    if matches!(simulation, Simulation::Scale) {
        command.arg("--release");
    }
    command.args(["--", name]);
    if let Simulation::Mesh { nodes } = simulation {
        command.args(["--nodes", &nodes.to_string()]);
    }
    if let Simulation::Planted { scenario: Some(scenario), .. } = simulation {
        command.args(["--scenario", scenario]);
    }
    if let Some(Seeds { seeds, start, secs, planted, histories }) = seeds {
        command.args(["--start", &start.to_string(), "--secs", &secs.to_string()]);
        let seeds = seeds.map(|seeds| seeds.to_string());
        for (name, value) in [("--seeds", &seeds), ("--planted", planted), ("--histories", histories)] {
            command.args(value.iter().flat_map(|value| [name, value]));
        }
    }
    run(command)
}
