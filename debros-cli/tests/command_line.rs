//! The binary as a shell runs it, where no node is needed: help, mistakes, exit codes, and what goes
//! to which stream.

use std::net::TcpListener;
use std::process::{Command, Output};

fn debros(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_debros"));
    for name in ["BOOTSTRAP", "FORMAT", "TIMEOUT", "NAMESPACE", "CLUSTER_SECRET_FILE", "DATABASE"] {
        command.env_remove(format!("DEBROS_{name}"));
    }
    command.env_remove("COLUMNS").args(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An address of this machine at which nobody listens.
fn deserted() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().expect("an address").port())
}

#[test]
fn help_is_as_it_was_reviewed() {
    for (arguments, golden) in [
        (["help", ""].as_slice(), include_str!("golden/help.txt")),
        (["help", "query"].as_slice(), include_str!("golden/help_query.txt")),
        (["help", "storage"].as_slice(), include_str!("golden/help_storage.txt")),
        (["help", "storage", "put"].as_slice(), include_str!("golden/help_storage_put.txt")),
        (["help", "pubsub"].as_slice(), include_str!("golden/help_pubsub.txt")),
        (["help", "pubsub", "subscribe"].as_slice(), include_str!("golden/help_pubsub_subscribe.txt")),
        (["help", "registers"].as_slice(), include_str!("golden/help_registers.txt")),
        (["help", "registers", "cas"].as_slice(), include_str!("golden/help_registers_cas.txt")),
    ] {
        let arguments: Vec<&str> =
            arguments.iter().copied().filter(|argument| !argument.is_empty()).collect();
        let output = debros(&arguments);
        assert!(output.status.success());
        let shown = text(&output.stdout);
        // Trailing blanks depend on clap's wrapping and mean nothing.
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(trimmed(&shown), trimmed(golden), "if meant, renew the golden file of {arguments:?}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_how_to_do_it() {
    let cases: [&[&str]; 26] = [
        &["query"],
        &["nonsense"],
        &["status", "-t", "soon"],
        &["query", "SELECT ?", "x'0'"],
        &["query", "SELECT ?", ":a=1", "2"],
        &["status", "-b", "127.0.0.1:4001"],
        &["status", "-n", "My App"],
        &["status", "-t", "10m"],
        &["connect", "nonsense"],
        &["database", "create", "Bad Name"],
        &["query", "-d", "Bad Name", "SELECT 1"],
        &["pubsub", "publish", "rooms.*", "hi"],
        &["pubsub", "subscribe", "a.>.b"],
        &["pubsub", "bench", "--to", "nonsense"],
        &["storage", "get", ""],
        &["storage", "put", "key"],
        &["storage", "put", "key", "value", "--ttl", "0s"],
        &["storage", "put", "key", "value", "--quorum", "most"],
        &["storage", "delete", &"k".repeat(1025)],
        &["storage", "watch", "--resume", "***"],
        &["storage", "list", "--limit", "many"],
        &["registers", "get", ""],
        &["registers", "get", "x'0'"],
        &["registers", "cas", "key", "soon", "value"],
        &["registers", "list", "--limit", "0"],
        &["registers", "leases", "--limit", "0"],
    ];
    for arguments in cases {
        let output = debros(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.contains("next:") || told.contains("--help"), "{told}");
    }
}

#[test]
fn an_unreachable_node_ends_with_3_and_names_the_address() {
    let address = deserted();
    let output = debros(&["peers", "--bootstrap", &address]);
    assert_eq!(output.status.code(), Some(3));
    let told = text(&output.stderr);
    assert!(told.contains(&address) && told.contains("why:") && told.contains("next:"), "{told}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_file_that_is_not_there_is_told_before_a_node_is_looked_for() {
    let output = debros(&["storage", "put", "key", "--file", "nowhere.bin", "-b", &deserted()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nowhere.bin"));
}

#[test]
fn an_error_is_json_on_stdout_when_json_is_asked_for() {
    let output = debros(&["-f", "json", "health", "-b", &deserted()]);
    assert_eq!(output.status.code(), Some(3));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(object["error"]["kind"], "unreachable");
    assert_eq!(object["error"]["maybe_applied"], false);
}

#[test]
fn options_come_from_the_environment_too() {
    let address = deserted();
    let output = Command::new(env!("CARGO_BIN_EXE_debros"))
        .env("DEBROS_BOOTSTRAP", &address)
        .env("DEBROS_FORMAT", "json")
        .env("DEBROS_TIMEOUT", "1s")
        .env("DEBROS_NAMESPACE", "app")
        .arg("status")
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains(&address));
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_debros"));
    for name in ["BOOTSTRAP", "FORMAT", "TIMEOUT", "NAMESPACE", "CLUSTER_SECRET_FILE", "DATABASE"] {
        command.env(format!("DEBROS_{name}"), "");
    }
    let output = command.args(["query", "SELECT 1", "-b", &deserted()]).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}

#[test]
fn completions_and_version_need_no_node() {
    for shell in ["bash", "zsh", "fish"] {
        let output = debros(&["completions", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("cluster"));
    }
    assert_eq!(text(&debros(&["--version"]).stdout), format!("debros {}\n", env!("CARGO_PKG_VERSION")));
}
