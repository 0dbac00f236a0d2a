//! What each command of `debros pubsub` does, on any pub/sub. The measurement is `bench`.

mod bench;

use std::ffi::OsStr;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use debros_sdk::{
    Acknowledge, Headers, Message, Outgoing, PubSub, SubscribeOptions, SubscriptionEvent, TopicInfo, check,
};
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep_until};

use crate::arguments::Global;
use crate::arguments::pubsub::{Bench, PubSubCommand, Publish, Request, Subscribe};
use crate::commands::{failed, print};
use crate::connection::{self, Connection};
use crate::failure::Failure;
use crate::format::Format;
use crate::storage::write_all;
use crate::{json, table};

const NEXT: &str = "`debros help pubsub` shows how topics and patterns are written";

/// A command whose mistakes were told, and whose message was read.
pub(crate) struct Task {
    command: PubSubCommand,
    message: Vec<u8>,
}

/// Does what needs no node.
pub(crate) fn prepare(command: PubSubCommand) -> Result<Task, Failure> {
    let (checked, message) = match &command {
        PubSubCommand::Publish(Publish { topic, message, .. })
        | PubSubCommand::Request(Request { topic, message, .. }) => (check::topic(topic), Some(message)),
        PubSubCommand::Subscribe(Subscribe { pattern, .. }) => (check::pattern(pattern), None),
        PubSubCommand::Bench(Bench { to: Some(to), .. }) => (check::multiaddr(to), None),
        PubSubCommand::Topics | PubSubCommand::Bench(_) => (Ok(()), None),
    };
    checked.map_err(|error| Failure::usage(error.to_string(), NEXT))?;
    let message = message.map(|message| read(message)).transpose()?.unwrap_or_default();
    Ok(Task { command, message })
}

fn read(message: &OsStr) -> Result<Vec<u8>, Failure> {
    if message != "-" {
        return Ok(message.as_encoded_bytes().to_vec());
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|error| Failure::Local { message: format!("cannot read stdin: {error}") })?;
    Ok(bytes)
}

/// Runs the command.
pub(crate) async fn run(global: &Global, connection: &Connection, task: Task) -> Result<(), Failure> {
    let Task { command, message } = task;
    let pubsub = connection.client.pubsub();
    match command {
        PubSubCommand::Publish(publish) => self::publish(global.format, &pubsub, &publish, &message).await,
        PubSubCommand::Subscribe(subscribe) => self::subscribe(global.format, &pubsub, &subscribe).await,
        PubSubCommand::Topics => {
            let topics = pubsub.cluster_topics().await.map_err(failed("list the topics"))?;
            print(global.format, || topics_for_people(&topics), || topics_for_programs(&topics))
        }
        PubSubCommand::Request(request) => {
            let Request { topic, wait, message: _ } = &request;
            let answer = pubsub.request(topic, &message, *wait).await;
            let answer = answer.map_err(|error| Failure::operation(format!("ask {topic:?}"), error))?;
            match global.format {
                Format::Json => print(global.format, String::new, || message_for_programs(&answer)),
                Format::Table => write_all(&mut std::io::stdout().lock(), answer.payload()).map(drop),
            }
        }
        PubSubCommand::Bench(bench) => self::measure(global, &pubsub, &bench).await,
    }
}

async fn publish(
    format: Format,
    pubsub: &dyn PubSub,
    publish: &Publish,
    message: &[u8],
) -> Result<(), Failure> {
    let Publish { topic, acked, headers, message: _ } = publish;
    let mut encoded = Headers::new();
    for (name, value) in headers {
        encoded = encoded.with(name, value).map_err(|error| Failure::usage(error.to_string(), NEXT))?;
    }
    let outgoing = Outgoing::new(topic, message).with_headers(&encoded);
    let acknowledge = if *acked { Acknowledge::Received } else { Acknowledge::Routed };
    let published = pubsub.publish_with(outgoing, acknowledge).await;
    let nodes = published.map_err(|error| Failure::operation(format!("publish to {topic:?}"), error))?;
    let for_people = || {
        let heard = match nodes {
            Some(0) => "\nnobody is subscribed to it",
            _ => "",
        };
        format!("✅ Published message to topic: {}{heard}", table::key(topic))
    };
    print(format, for_people, || json!({"topic": topic, "bytes": message.len(), "nodes": nodes}))
}

async fn subscribe(format: Format, pubsub: &dyn PubSub, subscribe: &Subscribe) -> Result<(), Failure> {
    let Subscribe { pattern, duration, group, count } = subscribe;
    let failed = |error| Failure::operation(format!("subscribe to {pattern:?}"), error);
    let options = SubscribeOptions { group: group.clone(), ..SubscribeOptions::default() };
    let mut subscription = pubsub.subscribe_with(pattern, options).await.map_err(failed)?;
    let end = duration.map(|duration| Instant::now() + duration);
    if format == Format::Table {
        let how_long =
            duration.map_or_else(|| "until Ctrl-C".to_owned(), |duration| format!("for {duration:?}"));
        eprintln!("🔔 Subscribed to topic: {} {how_long}", table::key(pattern));
    }
    let mut stdout = std::io::stdout();
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            event = subscription.next() => event,
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(|error| Failure::Local { message: error.to_string() })?;
                break;
            }
        };
        let Some(event) = event else { break };
        let event = event.map_err(failed)?;
        left -= u64::from(matches!(event, SubscriptionEvent::Message(_)));
        let line = match format {
            Format::Table => event_for_people(&event, SystemTime::now()),
            Format::Json => event_for_programs(&event).to_string(),
        };
        if !write_all(&mut stdout, format!("{line}\n").as_bytes())? {
            break;
        }
    }
    Ok(())
}

async fn measure(global: &Global, pubsub: &dyn PubSub, bench: &Bench) -> Result<(), Failure> {
    let at = Global {
        bootstrap: bench.to.clone().map_or_else(|| global.bootstrap.clone(), |to| vec![to]),
        format: global.format,
        timeout: global.timeout,
        namespace: global.namespace.clone(),
        cluster_secret_file: global.cluster_secret_file.clone(),
    };
    let other = connection::establish(&at).await?;
    let measured = bench::run(pubsub, &other.client.pubsub(), bench).await;
    other.client.close().await;
    let measured = measured.map_err(failed("measure"))?;
    print(global.format, || measured.for_people(), || measured.for_programs())
}

fn event_for_people(event: &SubscriptionEvent, now: SystemTime) -> String {
    match event {
        SubscriptionEvent::Message(message) => {
            let (topic, payload) = (table::key(message.topic()), table::bytes(message.payload()));
            let headers: String = message
                .headers()
                .iter()
                .map(|(name, value)| format!(" {}={}", table::key(&name), table::bytes(&value)))
                .collect();
            let reply = message
                .reply()
                .map_or_else(String::new, |reply| format!(" (reply to {})", table::key(reply)));
            format!("📨 [{}] {topic}:{headers} {payload}{reply}", clock(now))
        }
        SubscriptionEvent::Lagged { missed: Some(missed) } => format!("⚠️  {missed} messages were missed"),
        _ => "⚠️  messages may have been missed".to_owned(),
    }
}

/// The time of day, in UTC.
fn clock(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn event_for_programs(event: &SubscriptionEvent) -> Json {
    match event {
        SubscriptionEvent::Message(message) => {
            let mut object = message_for_programs(message);
            object["event"] = json!("message");
            object["received_unix_ms"] = json!(json::unix_ms(SystemTime::now()));
            object
        }
        SubscriptionEvent::Lagged { missed } => json!({"event": "lagged", "missed": missed}),
        _ => json!({"event": "unknown"}),
    }
}

fn message_for_programs(message: &Message) -> Json {
    let headers: Vec<Json> = message
        .headers()
        .iter()
        .map(|(name, value)| json!({"name": name, "value": String::from_utf8_lossy(&value)}))
        .collect();
    json!({
        "topic": message.topic(),
        "payload": std::str::from_utf8(message.payload()).ok(),
        "payload_base64": BASE64.encode(message.payload()),
        "bytes": message.payload().len(),
        "reply": message.reply(),
        "headers": headers,
        // Many readers of JSON keep only 53 bits of a number.
        "publisher": format!("{:016x}", message.publisher()),
        "number": message.number(),
    })
}

fn topics_for_people(topics: &[TopicInfo]) -> String {
    let mut lines = vec![format!("Topics ({}):", topics.len())];
    lines.extend(topics.iter().map(|topic| {
        let group =
            topic.group.as_ref().map_or_else(String::new, |group| format!(", group {}", table::key(group)));
        let (subscriptions, nodes) =
            (plural(topic.subscriptions, "subscription"), plural(topic.nodes, "node"));
        format!("  {}  {subscriptions} on {nodes}{group}", table::key(&topic.pattern))
    }));
    lines.join("\n")
}

fn plural(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn topics_for_programs(topics: &[TopicInfo]) -> Json {
    let topic = |topic: &TopicInfo| {
        json!({
            "pattern": topic.pattern,
            "group": topic.group,
            "subscriptions": topic.subscriptions,
            "nodes": topic.nodes,
        })
    };
    json!({"topics": topics.iter().map(topic).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use debros_sdk::memory::MemoryPubSub;
    use debros_sdk::{Acknowledge, Headers, Outgoing, PubSub, SubscriptionEvent, TopicInfo};

    use super::{event_for_people, event_for_programs, message_for_programs, topics_for_people};

    #[tokio::test]
    async fn a_message_keeps_its_shapes() {
        let pubsub = MemoryPubSub::new();
        let mut subscription = pubsub.subscribe("rooms.*").await.unwrap();
        let headers = Headers::new().with("from", "Ada").unwrap();
        let outgoing = Outgoing::new("rooms.1", b"hi\n").with_headers(&headers).with_reply("back");
        pubsub.publish_with(outgoing, Acknowledge::Accepted).await.unwrap();
        let event = subscription.next().await.unwrap().unwrap();
        let at = UNIX_EPOCH + Duration::from_secs(86_400 + 3 * 3600 + 4 * 60 + 5);
        assert_eq!(event_for_people(&event, at), "📨 [03:04:05] rooms.1: from=Ada hi\\n (reply to back)");
        let told = event_for_programs(&event);
        assert_eq!((&told["event"], &told["number"]), (&"message".into(), &1.into()));
        let SubscriptionEvent::Message(message) = event else { panic!("a message") };
        let mut told = message_for_programs(&message);
        assert_eq!(told["publisher"].as_str().unwrap().len(), 16);
        told["publisher"] = "p".into();
        let golden = concat!(
            r#"{"bytes":3,"headers":[{"name":"from","value":"Ada"}],"number":1,"payload":"hi\n","#,
            r#""payload_base64":"aGkK","publisher":"p","reply":"back","topic":"rooms.1"}"#
        );
        assert_eq!(told, serde_json::from_str::<serde_json::Value>(golden).unwrap());
        let lagged = SubscriptionEvent::Lagged { missed: Some(3) };
        assert_eq!(event_for_people(&lagged, at), "⚠️  3 messages were missed");
        assert_eq!(event_for_programs(&lagged).to_string(), r#"{"event":"lagged","missed":3}"#);
    }

    #[test]
    fn topics_are_lines() {
        let topics = [
            TopicInfo { pattern: "a.*".into(), group: None, subscriptions: 1, nodes: 1 },
            TopicInfo { pattern: "b".into(), group: Some("g".into()), subscriptions: 3, nodes: 2 },
        ];
        let lines = "Topics (2):\n  a.*  1 subscription on 1 node\n  b  3 subscriptions on 2 nodes, group g";
        assert_eq!(topics_for_people(&topics), lines);
        assert_eq!(topics_for_people(&[]), "Topics (0):");
    }
}
