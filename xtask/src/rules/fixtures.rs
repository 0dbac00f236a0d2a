//! The tests that `promtool test rules` runs: made of raw series, so that recording rules are tested with the alerts. Each alert
//! fires on its cause, and exactly it does; each stays silent on what comes near: a burn just below its factor, one that is over, one of too few
//! requests, and all the while failures that are the users' own and failures of what nodes ask each other.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::Serialize;

use super::causes::Proof;
use super::{ALERTS_GROUP, ALERTS_PATH, Alert, RULES_GROUP, RULES_PATH, alerts, burns, written};
use crate::slo::{Burn, Codes, Counts, Level, Slo};

/// The folder of the tests, from the root of the workspace.
pub(crate) const FOLDER: &str = "configs/prometheus/tests";
/// What happens a minute where it does not matter how much.
const USUAL_PER_MINUTE: f64 = 600.0;
/// After the last bad one a rate over five minutes needs these to fall to nothing.
const FADING_MINUTES: u64 = 6;

#[derive(Serialize)]
struct File {
    rule_files: Vec<String>,
    evaluation_interval: String,
    /// What is recorded is fresh when alerts read it, however rarely both are evaluated.
    group_eval_order: [&'static str; 2],
    tests: Vec<Test>,
}

#[derive(Serialize)]
struct Test {
    name: String,
    interval: &'static str,
    input_series: Vec<Series>,
    promql_expr_test: Vec<Expectation>,
}

#[derive(Serialize)]
struct Series {
    series: String,
    values: String,
}

#[derive(Serialize)]
struct Expectation {
    expr: String,
    eval_time: String,
    exp_samples: Vec<Sample>,
}

#[derive(Serialize)]
struct Sample {
    labels: String,
    value: u64,
}

/// Path and text of every test file.
pub(crate) fn files(slo: &Slo) -> Result<Vec<(String, String)>> {
    let mut files = vec![file("causes", 1, causes(slo))?];
    for burn in &slo.burns {
        let name = format!("burns-{}", burn.long.as_str());
        files.push(file(&name, evaluated_each(burn), of_burn(slo, burn)?)?);
    }
    Ok(files)
}

/// Minutes from one evaluation to the next: days are not tested minute by minute.
fn evaluated_each(burn: &Burn) -> u64 {
    match burn.short.minutes() {
        ..10 => 1,
        10..60 => 5,
        60.. => 15,
    }
}

fn file(name: &str, evaluated_each: u64, tests: Vec<Test>) -> Result<(String, String)> {
    let evaluation_interval = format!("{evaluated_each}m");
    // From the folder of the tests.
    let rule_files = [RULES_PATH, ALERTS_PATH].map(|path| path.replace("configs/prometheus", ".."));
    let group_eval_order = [RULES_GROUP, ALERTS_GROUP];
    let text =
        written(&File { rule_files: rule_files.into(), evaluation_interval, group_eval_order, tests })?;
    Ok((format!("{FOLDER}/{name}.yaml"), text))
}

fn causes(slo: &Slo) -> Vec<Test> {
    let mut tests = Vec::new();
    for Alert { name, proof, .. } in alerts(slo) {
        let Some(Proof { fires, fires_at, silent, silent_at }) = proof else { continue };
        for (what, inputs, at_minutes, expected) in [
            ("fires", fires, fires_at, vec![name.as_str()]),
            ("stays silent on a near miss", silent, silent_at, vec![]),
        ] {
            let series =
                inputs.into_iter().map(|input| Series { series: input.series, values: input.values.into() });
            tests.push(Test {
                name: format!("{name} {what}"),
                interval: "1m",
                input_series: series.collect(),
                promql_expr_test: vec![expect("", at_minutes, &expected)],
            });
        }
    }
    tests
}

/// That exactly these alerts are firing.
fn expect(labels: &str, at_minutes: u64, alerts: &[&str]) -> Expectation {
    let sample = |name: &&str| Sample { labels: format!("{{alertname=\"{name}\"}}"), value: 1 };
    Expectation {
        expr: format!("count by (alertname) (ALERTS{{alertstate=\"firing\"{labels}}})"),
        eval_time: format!("{at_minutes}m"),
        exp_samples: alerts.iter().map(sample).collect(),
    }
}

/// For so many minutes so much is bad.
struct Phase {
    minutes: u64,
    bad: f64,
}

/// What happens to one level: so much a minute, and how much of it is bad.
struct Story {
    per_minute: f64,
    phases: Vec<Phase>,
}

fn of_burn(slo: &Slo, burn: &Burn) -> Result<Vec<Test>> {
    let long = burn.long.minutes();
    let after = (burn.short.minutes() + FADING_MINUTES).next_multiple_of(evaluated_each(burn));
    let usual = |phases| Story { per_minute: USUAL_PER_MINUTE, phases };
    let burning =
        |level: &Level, times: f64| Phase { minutes: long, bad: times * burns::threshold(level, burn) };
    let test = |what: &str, at, expected: &[&str], story: &dyn Fn(&Level) -> Story| {
        let mut input_series = Vec::new();
        for level in &slo.levels {
            input_series.extend(happens(slo, level, &story(level))?);
        }
        let labels = format!(",window=\"{}\"", burn.long.as_str());
        anyhow::Ok(Test {
            name: format!("a budget over {}: {what}", burn.long.as_str()),
            interval: "1m",
            input_series,
            promql_expr_test: vec![expect(&labels, at, expected)],
        })
    };
    let names = slo.levels.iter().map(burns::name).collect::<Vec<_>>();
    let all = names.iter().map(String::as_str).collect::<Vec<_>>();
    Ok(vec![
        test("each burns a little too fast, each alert fires", long, &all, &|level| {
            usual(vec![burning(level, 1.1)])
        })?,
        test("each burns almost too fast, nobody is called", long, &[], &|level| {
            usual(vec![burning(level, 0.95)])
        })?,
        test("each burnt far too fast and does no more, nobody is called", long + after, &[], &|level| {
            usual(vec![burning(level, 3.0), Phase { minutes: after, bad: 0.0 }])
        })?,
        test("most is bad but it is too little to say, nobody is called", long, &[], &|level| {
            let bad = 0.9;
            // Halved: what happens to one level may count in another as well.
            let too_few = (level.least - 1) as f64 / 2.0;
            Story { per_minute: too_few / bad / long as f64, phases: vec![Phase { minutes: long, bad }] }
        })?,
    ])
}

/// The raw series of a level to which this happens.
fn happens(slo: &Slo, level: &Level, story: &Story) -> Result<Vec<Series>> {
    let target = "job=\"debros\",cluster=\"test\",node=\"node-1\"";
    let labels =
        |labels: &str| if labels.is_empty() { target.to_owned() } else { format!("{labels},{target}") };
    let series =
        |name: &str, of: &str, values| Series { series: format!("{name}{{{}}}", labels(of)), values };
    let bad = |share: f64| counter(story, |phase| phase.bad * share);
    let good = counter(story, |phase| 1.0 - phase.bad);
    let all = |share: f64| counter(story, |_| share);
    let method = |groups: &[String]| {
        let requests = slo.requests(groups)?;
        requests.methods.into_iter().next().context("a level of requests without a method")
    };
    Ok(match &level.counts {
        Counts::Answered(groups) => {
            let (name, method) = ("debros_rpc_requests_total", method(groups)?);
            let code =
                |origin: &str, code: &str| format!("method=\"{method}\",origin=\"{origin}\",code=\"{code}\"");
            let Codes { users_fault, services_fault, redirects } = &slo.codes;
            let each = |share: f64, codes: &[String]| share / codes.len() as f64;
            let answered = |share: f64| counter(story, |phase| (1.0 - phase.bad) * share);
            let mut codes = vec![series(name, &code("client", "OK"), answered(0.5))];
            for user in users_fault {
                codes.push(series(name, &code("client", user), answered(each(0.5, users_fault))));
            }
            for fault in services_fault {
                codes.push(series(name, &code("client", fault), bad(each(1.0, services_fault))));
                codes.push(series(name, &code("node", fault), all(1.0)));
            }
            for redirect in redirects {
                codes.push(series(name, &code("client", redirect), all(0.5)));
            }
            codes
        }
        Counts::Faster { requests, seconds } => {
            let (name, method) = ("debros_rpc_duration_seconds", method(requests)?);
            let of = |origin| format!("method=\"{method}\",origin=\"{origin}\"");
            let own = format!("{},{}", of("node"), bucket(*seconds));
            let mut histograms = vec![
                series(&format!("{name}_count"), &of("client"), all(1.0)),
                series(&format!("{name}_count"), &of("node"), all(1.0)),
                series(&format!("{name}_bucket"), &own, all(0.0)),
            ];
            // Another level may count the same requests by another bound: what is late for one is for all.
            let bounds = slo.levels.iter().filter_map(|level| match level.counts {
                Counts::Faster { seconds, .. } => Some(bucket(seconds)),
                _ => None,
            });
            let within = bounds.collect::<BTreeSet<_>>().into_iter().map(|within| {
                series(&format!("{name}_bucket"), &format!("{},{within}", of("client")), good.clone())
            });
            histograms.extend(within);
            histograms
        }
        Counts::Delivered => vec![
            series("debros_pubsub_delivered_total", "", good),
            series("debros_pubsub_dropped_total", "", bad(0.5)),
            series("debros_pubsub_lost_total", "", bad(0.5)),
        ],
        Counts::Discovered { seconds } => vec![
            series("debros_net_discovery_duration_seconds_count", "", all(1.0)),
            series("debros_net_discovery_duration_seconds_bucket", &bucket(*seconds), good),
        ],
        Counts::Probed => vec![
            series("debros_probe_total", "probe=\"storage\",outcome=\"ok\"", good),
            series("debros_probe_total", "probe=\"storage\",outcome=\"failed\"", bad(1.0)),
        ],
    })
}

/// The label of a bucket as nodes write it.
fn bucket(seconds: f64) -> String {
    format!("le=\"{seconds:?}\"")
}

/// A counter in promtool's notation: in each phase this share of what happens adds to it.
fn counter(story: &Story, share: impl Fn(&Phase) -> f64) -> String {
    // Upwards: a counter that falls by a rounded hair has begun anew, for Prometheus.
    let rounded = |value: f64| (value * 1e6).ceil() / 1e6;
    let (mut value, mut text) = (0.0, String::from("0"));
    for phase in &story.phases {
        let step = rounded(story.per_minute * share(phase));
        let begin = if value > 0.0 { rounded(value) + 1e-6 } else { 0.0 };
        text += &format!(" {}+{step}x{}", rounded(begin + step), phase.minutes - 1);
        value += step * phase.minutes as f64;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Phase, Story, bucket, counter};
    use crate::rules::levels::bound;

    #[test]
    fn a_counter_goes_on_where_a_phase_ends() {
        let phases = vec![Phase { minutes: 60, bad: 0.5 }, Phase { minutes: 10, bad: 0.0 }];
        let story = Story { per_minute: 10.0, phases };
        assert_eq!(counter(&story, |phase| phase.bad), "0 5+5x59 300.000001+0x9");
    }

    #[test]
    fn the_label_of_a_bucket_is_one_that_the_rules_look_for() {
        assert_eq!((bucket(0.1).as_str(), bound(0.1).as_str()), ("le=\"0.1\"", "le=\"0.1\""));
        assert_eq!((bucket(30.0).as_str(), bound(30.0).as_str()), ("le=\"30.0\"", "le=~\"30(\\\\.0)?\""));
    }
}
