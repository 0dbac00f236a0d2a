//! The log of a running node: its level from the command line, and the trace in its lines.

use crate::process::{Node, debros};
use crate::{DEADLINE, MACHINE, eventually};

/// The lines that say that the level was changed, each with its trace.
fn changes(log: &str, format: &str) -> Vec<(String, String)> {
    let lines = log.lines().filter(|line| line.contains("the log's level was changed"));
    lines
        .map(|line| match format {
            "json" => {
                let line: serde_json::Value = serde_json::from_str(line).expect(line);
                let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                (text(&line["trace_id"]), text(&line["fields"]["now"]))
            }
            _ => {
                let after = |name: &str| line.split_once(name).map_or("", |(_, rest)| rest);
                let trace = after(" trace_id=").split(' ').next().unwrap_or_default();
                let now = after("now=\"").split('"').next().unwrap_or_default();
                (trace.to_owned(), now.to_owned())
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_is_changed_while_the_node_runs_and_lines_name_their_trace() {
    let _beside_others = MACHINE.read().await;
    for format in ["text", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.yaml");
        // Nobody listens there: that costs the traces, not the node.
        let text = format!(
            "node: {{ id: alpha, listen_addresses: [/ip4/127.0.0.1/tcp/0] }}\nadmin: {{ port: 0 }}\n\
             database: {{ rqlite_port: 0 }}\nlogging: {{ format: {format} }}\n\
             tracing: {{ otlp_endpoint: 'http://127.0.0.1:9', sampling_ratio: 1 }}\n"
        );
        std::fs::write(&file, text).unwrap();
        let node = Node::start(folder.path(), "alpha", &["--begin", "--config", file.to_str().unwrap()]);
        eventually("it listens", async || node.said("HTTP API on").then_some(()).ok_or_else(|| node.log()))
            .await;
        let log = node.log();
        let address = log.split_once("listening on ").expect("an address").1;
        let address = address.split(['"', '\n']).next().expect("its end").to_owned();
        let run = async |level: &[&str]| {
            debros(&[["-b", address.as_str(), "-f", "json", "node", "log-level"].as_slice(), level].concat())
                .await
        };
        let shown = async |level: &[&str], now: &str, before: &str| {
            let (code, out, told) = run(level).await;
            let found: serde_json::Value = serde_json::from_str(&out).expect(&told);
            assert_eq!(
                (code, &found["level"], &found["before"]),
                (Some(0), &now.into(), &before.into()),
                "{told}"
            );
        };
        shown(&[], "info", "info").await;
        assert!(!node.said("DEBUG"), "{}", node.log());
        shown(
            &["warn,debros_node=debug,debros_net=debug"],
            "warn,debros_node=debug,debros_net=debug",
            "info",
        )
        .await;
        for wrong in ["loud", "debros_node=loud", "info,", ""] {
            let (code, _, told) = run(&[wrong]).await;
            assert!(matches!(code, Some(1 | 2)), "{wrong:?} gave {code:?}: {told}");
            assert!(told.contains("level"), "{wrong:?}: {told}");
        }
        shown(&["TRACE"], "trace", "warn,debros_node=debug,debros_net=debug").await;
        eventually("it says more", async || node.said("TRACE").then_some(()).ok_or_else(|| node.log())).await;
        shown(&["info"], "info", "trace").await;
        let found = changes(&node.log(), format);
        assert_eq!(found.len(), 3, "{found:?}");
        for (trace, now) in &found {
            let digits = trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(digits && !now.is_empty(), "{trace:?} of {now:?}: {}", node.log());
        }
        eventually("the absent collector is noticed", async || {
            node.said("the collector takes no traces").then_some(()).ok_or_else(|| node.log())
        })
        .await;
        assert_eq!(node.terminate(DEADLINE).await, Some(0));
    }
}
