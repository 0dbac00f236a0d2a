//! `configs/slo.yaml`: what users are promised, parsed and checked. It knows what a service level counts, and no
//! name of a metric: [`crate::rules`] makes expressions of it.
//!
//! Invariants of an [`Slo`] that was read: every error code of the wire contract is somebody's fault or a redirect, and only one
//! of these; every level names known requests; objectives leave a budget.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use debros_proto::ErrorCode;
use serde::Deserialize;

/// Where it lies, from the root of the workspace.
pub(crate) const PATH: &str = "configs/slo.yaml";

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Slo {
    /// The time over which a promise is kept.
    pub(crate) window: Window,
    /// Where the runbooks are read; no slash at the end.
    pub(crate) runbooks: String,
    /// Whose fault an error code is.
    pub(crate) codes: Codes,
    /// Requests, by group.
    requests: BTreeMap<String, Requests>,
    /// When a budget burns too fast.
    pub(crate) burns: Vec<Burn>,
    /// The promises.
    pub(crate) levels: Vec<Level>,
}

/// Every error code, in exactly one list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Codes {
    pub(crate) users_fault: Vec<String>,
    pub(crate) services_fault: Vec<String>,
    pub(crate) redirects: Vec<String>,
}

/// What users ask for, on each of the two ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Requests {
    /// Methods of the SDK-facing service.
    pub(crate) methods: BTreeSet<String>,
    /// Routes of the HTTP API.
    pub(crate) routes: BTreeSet<String>,
}

/// One promise.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Level {
    /// In rules, as the label `slo`.
    pub(crate) name: String,
    /// What is promised, to end a sentence.
    pub(crate) promise: String,
    /// The part of what is counted that must be good.
    pub(crate) objective: f64,
    /// So many must be bad in a burn's long window before anyone is called.
    pub(crate) least: u64,
    pub(crate) counts: Counts,
}

/// What is counted, and what of it is good.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Counts {
    /// Requests of these groups; good unless they failed by the service's fault.
    Answered(Vec<String>),
    /// Requests of these groups; good if they were fast.
    Faster { requests: Vec<String>, seconds: f64 },
    /// Messages for subscriptions; good if they were not missed.
    Delivered,
    /// Times that a node looked for its cluster; good if it was found soon.
    Discovered { seconds: f64 },
    /// Probes of the nodes themselves; good if all was well.
    Probed,
}

/// A budget is burnt `factor` times as fast as it may, over a long window and still over a short one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Burn {
    pub(crate) factor: f64,
    pub(crate) long: Window,
    pub(crate) short: Window,
    pub(crate) severity: Severity,
}

/// How soon a person must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// At once, whatever the hour.
    Page,
    /// On the next working day.
    Ticket,
}

impl Severity {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Ticket => "ticket",
        }
    }
}

/// A span of time in Prometheus' own notation: a whole number and one of `m`, `h`, `d`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Window {
    minutes: u64,
    text: String,
}

impl Window {
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn minutes(&self) -> u64 {
        self.minutes
    }
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let unit = |letter| match letter {
            'm' => Some(1),
            'h' => Some(60),
            'd' => Some(24 * 60),
            _ => None,
        };
        let parsed = text.char_indices().next_back().and_then(|(at, letter)| {
            let count = text[..at].parse::<u64>().ok().filter(|count| *count > 0)?;
            count.checked_mul(unit(letter)?)
        });
        let wanted = "a span of time is a whole number and m, h or d, as in `30m`";
        let minutes = parsed.ok_or_else(|| format!("`{text}`: {wanted}"))?;
        Ok(Self { minutes, text })
    }
}

impl Slo {
    /// Reads the file of a workspace.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(PATH)).with_context(|| format!("cannot read {PATH}"))?;
        Self::parse(&text).with_context(|| PATH.to_owned())
    }

    fn parse(text: &str) -> Result<Self> {
        let slo: Self = serde_saphyr::from_str(text)?;
        slo.codes.check()?;
        for burn in &slo.burns {
            ensure!(burn.factor > 0.0, "a burn's factor must be positive");
            let (long, short) = (&burn.long, &burn.short);
            let in_order = short.minutes < long.minutes && long.minutes < slo.window.minutes;
            ensure!(in_order, "a burn's windows {short:?} and {long:?} must grow, up to {:?}", slo.window);
        }
        let mut names = BTreeSet::new();
        for level in &slo.levels {
            let name = &level.name;
            ensure!(names.insert(name), "two levels are called {name}");
            ensure!(is_word(name), "{name}: a level's name is of small letters and _");
            ensure!((0.5..1.0).contains(&level.objective), "{name}: an objective is from 0.5 to below 1");
            slo.check(&level.counts).with_context(|| name.clone())?;
        }
        Ok(slo)
    }

    fn check(&self, counts: &Counts) -> Result<()> {
        match counts {
            Counts::Answered(groups) => drop(self.requests(groups)?),
            Counts::Faster { requests, seconds } => {
                self.requests(requests)?;
                ensure!(*seconds > 0.0, "a time must be positive");
            }
            Counts::Discovered { seconds } => ensure!(*seconds > 0.0, "a time must be positive"),
            Counts::Delivered | Counts::Probed => {}
        }
        Ok(())
    }

    /// The requests of these groups together.
    pub(crate) fn requests(&self, groups: &[String]) -> Result<Requests> {
        let mut all = Requests::default();
        for group in groups {
            let of_group = self.requests.get(group);
            let Requests { methods, routes } =
                of_group.with_context(|| format!("there is no group of requests `{group}`"))?.clone();
            all.methods.extend(methods);
            all.routes.extend(routes);
        }
        ensure!(!all.methods.is_empty(), "no methods are named");
        Ok(all)
    }

    /// A level by its name.
    pub(crate) fn level(&self, name: &str) -> Result<&Level> {
        let level = self.levels.iter().find(|level| level.name == name);
        level.with_context(|| format!("{PATH} has no level `{name}`"))
    }

    /// Every window that a burn is measured over, and the one of the promises; the shortest first.
    pub(crate) fn windows(&self) -> Vec<&Window> {
        let burns = self.burns.iter().flat_map(|burn| [&burn.long, &burn.short]);
        burns.chain([&self.window]).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Level {
    /// The part that may be bad.
    pub(crate) fn budget(&self) -> f64 {
        // An objective has few decimals, their difference to 1 many.
        ((1.0 - self.objective) * 1e9).round() / 1e9
    }

    /// In seconds, where the promise is one of speed.
    pub(crate) fn seconds(&self) -> Option<f64> {
        match self.counts {
            Counts::Faster { seconds, .. } | Counts::Discovered { seconds } => Some(seconds),
            Counts::Answered(_) | Counts::Delivered | Counts::Probed => None,
        }
    }

    /// As people write it: `99.9 %`.
    pub(crate) fn percent(&self) -> String {
        format!("{} %", (self.objective * 1e6).round() / 1e4)
    }
}

impl Codes {
    fn check(&self) -> Result<()> {
        let mut listed = BTreeSet::new();
        for code in self.users_fault.iter().chain(&self.services_fault).chain(&self.redirects) {
            ensure!(listed.insert(code.as_str()), "the code {code} is listed twice");
        }
        // The codes of the contract are numbered without gaps.
        let known = (0..).map_while(|number| ErrorCode::try_from(number).ok());
        let known = known.map(|code| code.as_str_name()).collect::<BTreeSet<_>>();
        if let Some(code) = known.difference(&listed).next() {
            bail!("whose fault is the code {code}? It is in no list");
        }
        if let Some(code) = listed.difference(&known).next() {
            bail!("there is no code {code}");
        }
        Ok(())
    }
}

fn is_word(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::{PATH, Slo};
    use crate::steps::workspace_root;

    fn text() -> String {
        std::fs::read_to_string(workspace_root().join(PATH)).unwrap()
    }

    fn refusal(from: &str, to: &str) -> String {
        let text = text();
        assert!(text.contains(from), "{from}");
        format!("{:#}", Slo::parse(&text.replacen(from, to, 1)).unwrap_err())
    }

    #[test]
    fn the_projects_own_levels_are_read() {
        let slo = Slo::parse(&text()).unwrap();
        let availability = slo.level("availability").unwrap();
        assert_eq!((availability.budget(), availability.percent().as_str()), (0.001, "99.9 %"));
        let windows = slo.windows().into_iter().map(super::Window::as_str).collect::<Vec<_>>();
        assert_eq!(windows, ["5m", "30m", "1h", "6h", "3d", "30d"]);
        assert!(slo.requests(&["linearizable_writes".into()]).unwrap().methods.contains("Execute"));
    }

    #[test]
    fn a_code_in_no_list_in_two_or_unknown_is_refused() {
        assert!(refusal("    - DISK_FULL\n", "").contains("whose fault is the code DISK_FULL"));
        assert!(refusal("    - STALE_EPOCH\n", "    - STALE_EPOCH\n    - BUSY\n").contains("twice"));
        assert!(refusal("    - STALE_EPOCH\n", "    - STALE_EPOCH\n    - BUSI\n").contains("no code BUSI"));
    }

    #[test]
    fn levels_that_cannot_be_kept_or_counted_are_refused() {
        assert!(refusal("objective: 0.999", "objective: 1").contains("below 1"));
        assert!(refusal("requests: [storage]", "requests: [store]").contains("no group of requests `store`"));
        assert!(refusal("name: discovery", "name: delivery").contains("two levels are called delivery"));
        assert!(refusal("long: 1h", "long: 1m").contains("must grow"));
        assert!(refusal("window: 30d", "window: a month").contains("a span of time"));
        assert!(refusal("counts: probed", "counts: guessed").contains("guessed"));
    }
}
