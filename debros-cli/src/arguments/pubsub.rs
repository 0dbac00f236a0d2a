//! The command line of `debros pubsub`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand};
use debros_sdk::MESSAGE_BYTES_MAX;

const PUBSUB_HELP: &str = "\
A topic is levels split by `.`. In a pattern `*` stands for one level, and `>` as the last one for
all that follow; every other character is literal. Quote patterns, or the shell takes them for files.
Messages are live: who is not subscribed when one is published does not get it.";

const PUBLISH_HELP: &str = "\
Without --acked the message is on its way to every subscriber's node when the command ends; with it
each of these nodes has it. `nodes` is null when that is not known.
JSON: {\"topic\", \"bytes\", \"nodes\"}

Examples:
  debros pubsub publish rooms.1 'hello, world'
  debros pubsub publish rooms.1 hi --header from=Ada --acked
  date | debros pubsub publish clock -";

const SUBSCRIBE_HELP: &str = "\
Prints a line for each message, until it is interrupted, the time is over or --count have come.
Goes on at another node when one dies, and says when messages were missed.
JSON: a line each: {\"event\": \"message\", \"topic\", \"payload\", \"payload_base64\", \"bytes\", \"reply\",
\"headers\": [{\"name\", \"value\"}], \"publisher\", \"number\", \"received_unix_ms\"}
or {\"event\": \"lagged\", \"missed\"}.
`payload` is null where it is no UTF-8, `missed` where nobody knows.

Examples:
  debros pubsub subscribe rooms.1
  debros pubsub subscribe 'rooms.*' 10s
  debros pubsub subscribe 'jobs.>' --group workers     each message goes to one of the group
  debros pubsub subscribe '>' --format json | jq -r .topic";

const REQUEST_HELP: &str = "\
The answer goes to stdout as it is. Exit code 1 when nobody is subscribed to the topic, or nobody
answers in time.
JSON: {\"topic\", \"payload\", \"payload_base64\", \"bytes\", \"headers\", ..}

Example:
  debros pubsub request clock.now '' --wait 2s";

const BENCH_HELP: &str = "\
Publishes as fast as a subscriber takes it, then one message at a time. Publisher and subscriber
are clients of their own; --to puts the subscriber at another node.
JSON: {\"messages\", \"bytes\", \"missed\", \"seconds\", \"messages_per_second\",
\"megabytes_per_second\", \"latency_p50_us\", \"latency_p99_us\"}

Example:
  debros pubsub bench -b /ip4/10.0.0.1/tcp/4001 --to /ip4/10.0.0.2/tcp/4001 --messages 1000000";

#[derive(Debug, Subcommand)]
#[command(after_help = PUBSUB_HELP)]
pub(crate) enum PubSubCommand {
    /// Publish a message to a topic
    #[command(after_help = PUBLISH_HELP)]
    Publish(Publish),
    /// Print the messages of a topic or a pattern
    #[command(after_help = SUBSCRIBE_HELP)]
    Subscribe(Subscribe),
    /// List what is subscribed to in the whole cluster
    #[command(after_help = "JSON: {\"topics\": [{\"pattern\", \"group\", \"subscriptions\", \"nodes\"}]}")]
    Topics,
    /// Publish a request and print the first answer
    #[command(after_help = REQUEST_HELP)]
    Request(Request),
    /// Measure how fast messages go through
    #[command(after_help = BENCH_HELP)]
    Bench(Bench),
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The topic, without wildcards
    pub(crate) topic: String,
    /// The message; `-` for stdin
    pub(crate) message: OsString,
    /// Tell something beside the message; may be given more than once
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    pub(crate) headers: Vec<(String, String)>,
    /// Wait until every subscriber's node has it
    #[arg(long)]
    pub(crate) acked: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Subscribe {
    /// A topic, or a pattern with `*` and `>`
    pub(crate) pattern: String,
    /// End after this long: like 500ms, 10s, 2m, 12h
    #[arg(value_parser = super::storage::ttl)]
    pub(crate) duration: Option<Duration>,
    /// Be a member of this queue group: each message goes to one of them
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<String>,
    /// End after so many messages
    #[arg(long, value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Request {
    /// The topic, without wildcards
    pub(crate) topic: String,
    /// The message; `-` for stdin
    pub(crate) message: OsString,
    /// How long to wait for the answer
    #[arg(short, long, default_value = "5s", value_parser = super::duration)]
    pub(crate) wait: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// How many messages
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) messages: u64,
    /// Bytes of a message
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=MESSAGE_BYTES_MAX as i64))]
    pub(crate) bytes: u32,
    /// The node at which the subscriber begins; the publisher's unless given
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) to: Option<String>,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::arguments::Arguments;

    #[test]
    fn a_subscription_may_have_an_end_and_a_message_headers() {
        let parse = |line: &str| Arguments::try_parse_from(format!("debros pubsub {line}").split(' '));
        let good =
            ["subscribe a.>", "subscribe a 10s", "subscribe a --count 1", "publish a - --header k=v=w"];
        for line in good {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in
            ["subscribe a soon", "publish a", "publish a b --header x", "bench --bytes 0", "request a"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
